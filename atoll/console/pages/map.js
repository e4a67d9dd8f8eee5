import { html, useMemo, useState } from "/console/vendor/preact-htm.js";
import { get } from "/console/api.js";
import { Choice, Page, Problem, Ring, Skeleton, useLoad } from "/console/ui.js";

const VIEWS = {
  world: { label: "World", box: [0, 0, 1000, 427] },
  asia: { label: "East Asia", box: [732, 78, 185, 165] },
  europe: { label: "Europe and Gulf", box: [470, 40, 195, 160] },
  americas: { label: "Americas", box: [175, 75, 270, 260] },
};
const ORDER = ["live", "draining", "building", "announced", "retired"];
const LOOK = { live: "ready", draining: "starting", building: "starting", announced: "missing", retired: "failed" };
const A = [1.340264, -0.081106, 0.000893, 0.003796];
const M = Math.sqrt(3) / 2;

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

export function MapPage() {
  const [view, setView] = useState("world");
  const [picked, setPicked] = useState(null);
  const world = useLoad((signal) => get("/console/vendor/world.json", { signal }));
  const regions = useLoad((signal) => get("/atoll/v1/regions", { signal }).then((found) => found.data), [], 5000);
  const groups = useMemo(() => ORDER.map((status) => [status, (regions.data ?? []).filter((r) => r.status === status)]).filter(([, own]) => own.length), [regions.data]);
  const error = regions.error ?? world.error;
  const chosen = regions.data?.find((r) => r.id === picked);

  return html`<${Page} wide title="Map" note="The regions of this cloud. Those marked “here” are served by this installation.">
    <div class="filters"><${Choice} label="Part of the world" value=${view} onChange=${setView} options=${Object.entries(VIEWS).map(([id, v]) => [id, v.label])} />
      <p class="legend">${groups.map(([status, own]) => html`<span key=${status}><${Ring} state=${LOOK[status]} label=${`${own.length} ${status}`} /></span>`)}</p></div>
    <${Problem} error=${error} retry=${() => { regions.reload(); world.reload(); }} />
    ${!(world.data && regions.data) && !error ? html`<${Skeleton} rows=${8} />` : null}
    ${world.data && regions.data ? html`<${World} world=${world.data} regions=${regions.data} box=${VIEWS[view].box} picked=${chosen} onPick=${setPicked} />` : null}
    <div class="region-lists">${groups.map(([status, own]) => html`<section key=${status}><h2 class="section">${status}</h2>
      <ul class="regions">${own.map((r) => html`<li key=${r.id}><button class=${r.id === picked ? "region picked" : "region"} aria-pressed=${r.id === picked}
        onClick=${() => setPicked(r.id === picked ? null : r.id)} data-status=${r.status}>
        <${Ring} state=${LOOK[r.status]} label=${r.city} /><span><code>${r.id}</code> ${r.country}${r.here ? html` <b>here</b>` : null}</span></button></li>`)}</ul></section>`)}</div>
  <//>`;
}

function World({ world, regions, box, picked, onPick }) {
  const size = box[2] / 1000;
  const rank = (r) => (r.id === picked?.id ? ORDER.length : -ORDER.indexOf(r.status));
  const dots = regions.map((r) => ({ ...r, ...project(world, r) })).sort((a, b) => rank(a) - rank(b));
  const mark = picked ? { ...picked, ...project(world, picked) } : null;
  const inside = mark && mark.x > box[0] && mark.x < box[0] + box[2] && mark.y > box[1] && mark.y < box[1] + box[3];
  const left = mark && mark.x > box[0] + box[2] * 0.7;
  return html`<div class="world"><svg viewBox=${box.join(" ")} role="img" aria-label=${`World map with ${regions.length} regions; the list below names them`}>
    <path class="land" d=${world.land} />
    ${dots.map((r) => html`<g key=${r.id} class=${`dot ${r.status}${r.here ? " here" : ""}${r.id === picked?.id ? " picked" : ""}`} transform=${`translate(${r.x} ${r.y}) scale(${0.25 + 0.75 * size})`}
      data-region=${r.id} onClick=${() => onPick(r.id)}><title>${r.city}, ${r.id}: ${r.status}</title>
      <circle class="halo" r="9" /><circle class="mark" r=${r.status === "announced" ? 7.5 : 4.2} /></g>`)}
    ${inside ? html`<g class="name" transform=${`translate(${mark.x + (left ? -9 : 9) * size} ${mark.y + 4 * size}) scale(${size})`}>
      <text text-anchor=${left ? "end" : "start"} font-size="15">${mark.city}</text></g>` : null}
  </svg></div>`;
}
