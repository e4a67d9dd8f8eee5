/** The world with its regions: an SVG that changes when regions do, and a canvas above it on which requests move. */

import { html, useEffect, useLayoutEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { Arcs } from "/console/map/arcs.js";

const A = [1.340264, -0.081106, 0.000893, 0.003796];
const M = Math.sqrt(3) / 2;
const ORDER = ["live", "draining", "building", "announced", "retired"];
const LETTER_PX = 6.7;
const LINE_PX = 15;

/** Equal Earth (Šavrič, Patterson and Jenny 2018) in the units of the world outline. */
export function project(world, { lat, lon }) {
  const t = Math.asin(M * Math.sin((lat * Math.PI) / 180));
  const t2 = t * t;
  const t6 = t2 ** 3;
  const slope = A[0] + 3 * A[1] * t2 + t6 * (7 * A[2] + 9 * A[3] * t2);
  const x = (((lon * Math.PI) / 180) * Math.cos(t)) / (M * slope);
  const y = t * (A[0] + A[1] * t2 + t6 * (A[2] + A[3] * t2));
  return { x: world.x0 + x * world.scale, y: world.y0 - y * world.scale };
}

export const load = (r) => r.running + r.waiting;
/** Live, but not serving as it should: broken by a drill, silent, or with endpoints left out. */
export const hurt = (r) => (r.status === "live" || r.status === "draining") && r.served_by !== "" && (!r.alive || r.drill !== null || r.healthy < r.endpoints);
export const condition = (r) => (hurt(r) ? (r.drill ? `${r.status}, ${r.drill.kind} drill` : r.alive ? `${r.status}, ${r.healthy} of ${r.endpoints} healthy` : `${r.status}, not reached`) : r.status);

/** `places` are regions with x and y; `onArcs` gets the canvas to draw requests on. */
export function World({ world, places, box, picked, home, onPick, onRequest, onArcs }) {
  const frame = useRef(null);
  const canvas = useRef(null);
  const arcs = useRef(null);
  const [size, setSize] = useState({ width: 0, height: 0 });

  useLayoutEffect(() => {
    const made = (arcs.current = new Arcs(canvas.current));
    made.paint();
    onArcs(made);
    const watch = new ResizeObserver(([{ contentRect }]) => setSize({ width: contentRect.width, height: contentRect.height }));
    watch.observe(frame.current);
    const themed = () => made.paint();
    const system = matchMedia("(prefers-color-scheme: dark)");
    addEventListener("atoll:theme", themed);
    system.addEventListener("change", themed);
    return () => {
      watch.disconnect();
      removeEventListener("atoll:theme", themed);
      system.removeEventListener("change", themed);
      made.close();
      onArcs(null);
    };
  }, []);
  useEffect(() => {
    if (size.width) arcs.current.fit(size.width, size.height, box);
  }, [size, box]);

  const clicked = (event) => {
    if (event.target.closest(".dot")) return;
    const edge = frame.current.getBoundingClientRect();
    const id = arcs.current.at(event.clientX - edge.left, event.clientY - edge.top);
    if (id) onRequest(id);
  };
  const px = size.width ? 1 / Math.min(size.width / box[2], size.height / box[3]) : box[2] / 1000;
  const rank = (r) => (r.id === picked ? 99 : load(r) + (hurt(r) ? 20 : 0) - ORDER.indexOf(r.status));
  const dots = [...places].sort((a, b) => rank(a) - rank(b));
  return html`<div class="world" ref=${frame} onClick=${clicked}>
    <svg viewBox=${box.join(" ")} role="img" aria-label=${`World map with ${places.length} regions; the list below names them`}>
      <path class="land" d=${world.land} />
      ${dots.map((r) => html`<${Dot} key=${r.id} region=${r} px=${px} picked=${r.id === picked} home=${r.id === home} onPick=${onPick} />`)}
      ${labels(dots, box, px, picked, home).map((l) => html`<text key=${l.id} class=${l.id === picked ? "name picked" : "name"} x=${l.x} y=${l.y} font-size=${12 * px}
        stroke-width=${3.4 * px} text-anchor=${l.anchor} aria-hidden="true">${l.text}</text>`)}
    </svg><canvas ref=${canvas} aria-hidden="true"></canvas></div>`;
}

/** Size is load, colour is state, and the shape says the state again. */
function Dot({ region: r, px, picked, home, onPick }) {
  const at = load(r);
  const size = Math.min(14, 4.4 + 1.7 * Math.sqrt(at));
  const broken = hurt(r);
  const kind = ["dot", r.status, broken && "hurt", r.served_by && "served", picked && "picked", home && "home"].filter(Boolean).join(" ");
  return html`<g class=${kind} transform=${`translate(${r.x} ${r.y}) scale(${px})`} data-region=${r.id} data-load=${at} onClick=${() => onPick(r.id)}>
    <title>${r.city}, ${r.id}: ${condition(r)}${at ? `, ${r.running} running, ${r.waiting} waiting` : ""}</title>
    <circle class="halo" r=${Math.max(11, size + 5)} /><circle class="mark" r=${r.status === "announced" ? 5 : size} />
    ${home ? html`<circle class="ring-home" r=${size + 3.5} />` : null}
    ${broken ? html`<path class="cross" d="M-3-3L3 3M3-3L-3 3" />` : null}
    ${r.waiting ? html`<circle class="queue" r=${size + 3.5} pathLength="100" stroke-dasharray=${`${Math.min(100, 12 * r.waiting)} 100`} transform="rotate(-90)" />` : null}</g>`;
}

/** Names where they fit, the most important first; no name covers another, or a dot. -> [{id, text, x, y, anchor}] */
function labels(dots, box, px, picked, home) {
  const taken = dots.map((r) => [r.x - 5 * px, r.y - 5 * px, r.x + 5 * px, r.y + 5 * px, r.id]);
  const wanted = dots.filter((r) => r.id === picked || r.id === home || load(r) || hurt(r) || r.status === "live" || r.status === "draining" || box[2] < 500).reverse();
  const found = [];
  for (const r of wanted) {
    const text = load(r) ? `${r.city} ${load(r)}` : r.city;
    for (const anchor of ["start", "end"]) {
      const wide = text.length * LETTER_PX * px;
      const gap = (7 + 1.7 * Math.sqrt(load(r))) * px;
      const left = anchor === "start" ? r.x + gap : r.x - gap - wide;
      const area = [left, r.y - (LINE_PX / 2) * px, left + wide, r.y + (LINE_PX / 2) * px];
      const inside = area[0] > box[0] && area[2] < box[0] + box[2] && r.y > box[1] && r.y < box[1] + box[3];
      const free = inside && !taken.some((t) => t[4] !== r.id && t[0] < area[2] && t[2] > area[0] && t[1] < area[3] && t[3] > area[1]);
      if (!free && !(r.id === picked && inside)) continue;
      taken.push([...area, null]);
      found.push({ id: r.id, text, x: anchor === "start" ? r.x + gap : r.x - gap, y: r.y + 4 * px, anchor });
      break;
    }
  }
  return found;
}
