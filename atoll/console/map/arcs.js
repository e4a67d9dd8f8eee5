/** Requests as arcs on one canvas over the map. Nothing is laid out while they move, and only so many are drawn. */

const MOST = 80;
const FLIGHT_MS = 700;
const FADE_MS = 1800;
const SAMPLES = 28;
const REACH_PX = 9;

/** An arc is {id, leg, kind, from, to, bend, born, ended}; points in units of the map, times in ms, `ended` null while
 * the request runs. `kind` names a colour: run, moved (continued elsewhere), broken (where it broke off), failed. */
export class Arcs {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.arcs = new Map();
    this.view = { scale: 1, x: 0, y: 0 };
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.running = 0;
    this.colours = {};
  }

  /** Fit to the element's size and to the part of the map that is shown. */
  fit(width, height, box) {
    const dense = Math.min(devicePixelRatio || 1, 2);
    const scale = Math.min(width / box[2], height / box[3]);
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    this.dense = dense;
    this.view = { scale, x: (width - box[2] * scale) / 2 - box[0] * scale, y: (height - box[3] * scale) / 2 - box[1] * scale };
    this.wake();
  }

  paint() {
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.colours = { run: colour("--lagoon"), moved: colour("--arc-moved"), broken: colour("--coral"), failed: colour("--coral") };
    this.wake();
  }

  /** Show a leg of a request. `ended`: it is over already, and fades once it has arrived. */
  show({ id, leg = 0, kind, from, to, ended = false }) {
    const name = `${id} ${leg}`;
    const now = performance.now();
    const before = this.arcs.get(name);
    if (before && before.to === to) {
      before.kind = kind;
      if (ended) before.ended ??= Math.max(now, before.born + FLIGHT_MS);
    } else {
      this.arcs.set(name, { id, kind, from, to, bend: bend(from, to), born: now, ended: ended ? now + FLIGHT_MS : null });
      if (this.arcs.size > MOST) this.arcs.delete(this._oldest());
    }
    this.wake();
  }

  end(id) {
    const now = performance.now();
    for (const arc of this.arcs.values()) if (arc.id === id) arc.ended ??= Math.max(now, arc.born + FLIGHT_MS);
    this.wake();
  }

  _oldest() {
    for (const [name, arc] of this.arcs) if (arc.ended) return name;
    return this.arcs.keys().next().value;
  }

  /** The request whose arc passes nearest to a point of the element, in CSS pixels; null where none does. */
  at(x, y) {
    let found = null;
    let nearest = REACH_PX ** 2;
    for (const arc of this.arcs.values()) {
      for (let i = 0; i <= SAMPLES; i++) {
        const p = along(arc, i / SAMPLES);
        const d = (p.x * this.view.scale + this.view.x - x) ** 2 + (p.y * this.view.scale + this.view.y - y) ** 2;
        if (d < nearest) [nearest, found] = [d, arc.id];
      }
    }
    return found;
  }

  wake() {
    if (this.running) return;
    const next = () => {
      this.running = 0;
      if (!this.draw(performance.now())) return;
      this.running = this.still ? setTimeout(next, 250) : requestAnimationFrame(next);
    };
    this.running = this.still ? setTimeout(next, 50) : requestAnimationFrame(next);
  }

  close() {
    cancelAnimationFrame(this.running);
    clearTimeout(this.running);
    this.running = -1;
  }

  /** -> whether anything will still move. */
  draw(now) {
    const { pen, view, dense } = this;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.setTransform(dense, 0, 0, dense, view.x * dense, view.y * dense);
    pen.lineCap = "round";
    for (const [name, arc] of this.arcs) {
      if (arc.ended && now > arc.ended + FADE_MS) this.arcs.delete(name);
      else this._arc(arc, now);
    }
    pen.globalAlpha = 1;
    return this.arcs.size > 0;
  }

  _arc(arc, now) {
    const { pen, view: { scale } } = this;
    const flown = this.still ? 1 : Math.min(1, (now - arc.born) / FLIGHT_MS);
    const faded = arc.ended && now > arc.ended ? 1 - (now - arc.ended) / FADE_MS : 1;
    const from = (p) => [p.x * scale, p.y * scale];
    pen.strokeStyle = pen.fillStyle = this.colours[arc.kind];
    pen.globalAlpha = 0.75 * faded;
    pen.lineWidth = arc.ended ? 1.6 : 2.2;
    pen.setLineDash(arc.kind === "broken" || arc.kind === "failed" ? [4, 5] : []);
    pen.beginPath();
    if (arc.from === arc.to) {
      const turn = this.still ? 0.5 : arc.ended ? flown : ((now - arc.born) / 1400) % 1;
      pen.globalAlpha *= 1 - turn * 0.8;
      pen.arc(...from(arc.to), 7 + turn * 13, 0, 7);
      pen.stroke();
      return;
    }
    const part = split(arc, flown);
    pen.moveTo(...from(arc.from));
    pen.quadraticCurveTo(...from(part.bend), ...from(part.to));
    pen.stroke();
    const way = flown < 1 ? flown : arc.ended ? null : ((now - arc.born) / 1500) % 1;
    if (way === null || this.still) return;
    pen.globalAlpha = faded;
    pen.beginPath();
    pen.arc(...from(along(arc, way)), 3.4, 0, 7);
    pen.fill();
  }
}

/** The control point of an arc that rises to the side of the pole. */
function bend(from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy) || 1;
  const side = dx < 0 ? -1 : 1;
  const lift = Math.min(0.32 * length, 90);
  return { x: (from.x + to.x) / 2 + (side * dy * lift) / length, y: (from.y + to.y) / 2 - (side * dx * lift) / length };
}

const mix = (a, b, t) => ({ x: a.x + (b.x - a.x) * t, y: a.y + (b.y - a.y) * t });
const along = ({ from, bend, to }, t) => mix(mix(from, bend, t), mix(bend, to, t), t);
/** The first part of the curve (de Casteljau). */
const split = (arc, t) => (t === 1 ? arc : { bend: mix(arc.from, arc.bend, t), to: along(arc, t) });
