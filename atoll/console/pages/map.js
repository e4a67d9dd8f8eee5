import { html, useCallback, useMemo, useRef, useState } from "/console/vendor/preact-htm.js";
import { get } from "/console/api.js";
import { Ask } from "/console/explain.js";
import { ago, clock, count, milliseconds, money } from "/console/format.js";
import { RegionPanel } from "/console/map/region.js";
import { rates, useTraffic } from "/console/map/traffic.js";
import { condition, hurt, load, project, World } from "/console/map/world.js";
import { Path, RequestDetail, status } from "/console/request.js";
import { Choice, Page, Problem, Ring, Skeleton, useLoad } from "/console/ui.js";

const VIEWS = {
  world: { label: "World", box: [0, 0, 1000, 427] },
  asia: { label: "East Asia", box: [732, 78, 185, 165] },
  europe: { label: "Europe and Gulf", box: [470, 40, 195, 160] },
  americas: { label: "Americas", box: [175, 75, 270, 260] },
};
const ORDER = ["live", "draining", "building", "announced", "retired"];
const LOOK = { live: "ready", draining: "starting", building: "starting", announced: "missing", retired: "failed" };
export const look = (r) => (hurt(r) ? "failed" : LOOK[r.status]);

export function MapPage({ admin, models }) {
  const [view, setView] = useState("world");
  const [picked, setPicked] = useState(null);
  const [request, setRequest] = useState(null);
  const pick = useCallback((id, row = null) => setRequest({ id, row }), []);
  const [asking, setAsking] = useState(false);
  const world = useLoad((signal) => get("/console/vendor/world.json", { signal }));
  const regions = useLoad((signal) => get("/atoll/v1/regions", { signal }), [], 2000);
  const places = useMemo(() => (world.data && regions.data ? regions.data.data.map((r) => ({ ...r, ...project(world.data, r) })) : null), [world.data, regions.data]);
  const [arcs, traffic] = useArcs(places, regions.data?.home);
  const rate = useMemo(() => rates(traffic.minute), [traffic.minute]);
  const chosen = places?.find((r) => r.id === picked);
  const error = regions.error ?? world.error ?? traffic.error;
  const wan = regions.data?.wan;
  const unit = (r) => models.data?.find((m) => m.id === r.model)?.unit ?? "token";
  const row = useRow(request, traffic);

  return html`<${Page} wide title="Map" note=${html`The regions of this cloud, and its requests as they happen.${wan ? html` <span class="tag">latency emulated</span>` : null}`}
      actions=${html`<span role="status"><${Ring} state=${traffic.live ? "ready" : "starting"} label=${traffic.live ? "live" : "reconnecting"} /></span>
        <button class="quiet" onClick=${() => setAsking(true)}>Explain a route</button>`}>
    <${Problem} error=${error} retry=${() => { regions.reload(); world.reload(); }} />
    ${!places && !error ? html`<${Skeleton} rows=${8} />` : null}
    ${places ? html`<${Figures} places=${places} rate=${rate} />
    <div class=${chosen ? "map-and-panel with-panel" : "map-and-panel"}><div class="map-side">
      <${World} world=${world.data} places=${places} box=${VIEWS[view].box} picked=${picked} home=${regions.data.home} onPick=${setPicked} onRequest=${pick} onArcs=${arcs} />
      <div class="filters under-map"><${Choice} label="Part of the world" value=${view} onChange=${setView} options=${Object.entries(VIEWS).map(([id, v]) => [id, v.label])} /><${Legend} /></div>
      <${Latest} rows=${traffic.latest} onPick=${pick} /></div>
      ${chosen ? html`<${RegionPanel} key=${chosen.id} region=${chosen} home=${regions.data.home} rate=${rate.byRegion.get(chosen.id)} places=${places} latest=${traffic.latest} admin=${admin} models=${models.data ?? []}
        onChange=${regions.reload} onRequest=${pick} onClose=${() => setPicked(null)} />` : null}</div>
    <${List} places=${places} picked=${picked} home=${regions.data.home} onPick=${setPicked} />` : null}
    ${row ? html`<${RequestDetail} row=${row} unit=${unit} onClose=${() => setRequest(null)} />` : null}
    ${asking ? html`<${Ask} models=${(models.data ?? []).filter((m) => m.task === "chat")} onClose=${() => setAsking(false)} />` : null}
  <//>`;
}

/** -> [what takes the canvas, the traffic]: each leg of a request becomes an arc from the gateway's region. */
function useArcs(places, home) {
  const canvas = useRef(null);
  const where = useRef(new Map());
  where.current = useMemo(() => {
    const next = new Map();
    for (const { id, x, y } of places ?? []) {
      const before = where.current.get(id);
      next.set(id, before && before.x === x && before.y === y ? before : { x, y });
    }
    return next;
  }, [places]);
  const traffic = useTraffic((row, legs) => {
    const from = where.current.get(home);
    const ended = row.status !== "open";
    if (!canvas.current || !from) return;
    if (ended) canvas.current.end(row.id);
    legs.forEach(({ region, kind }, leg) => {
      const to = where.current.get(region);
      if (to) canvas.current.show({ id: row.id, leg, kind, from, to, ended });
    });
  });
  return [useCallback((made) => { canvas.current = made; }, []), traffic];
}

/** The row of the request that was picked, as new as it is known; kept when newer ones push it off the list. */
function useRow(request, traffic) {
  const kept = useRef(null);
  const found = request && (traffic.minute.find((r) => r.id === request.id) ?? traffic.latest?.find((r) => r.id === request.id) ?? request.row);
  if (found || !request) kept.current = found;
  return kept.current?.id === request?.id ? kept.current : null;
}

function Figures({ places, rate }) {
  const serving = places.filter((r) => r.served_by);
  const sum = (name) => serving.reduce((total, r) => total + r[name], 0);
  const well = serving.filter((r) => !hurt(r)).length;
  let grams = 0;
  let tokens = 0;
  for (const r of serving) {
    const own = rate.byRegion.get(r.id)?.tokens ?? 0;
    grams += own * r.carbon;
    tokens += own;
  }
  const figures = [
    ["Requests", `${count(rate.perMinute)}/min`, `${rate.tokens.toFixed(rate.tokens < 10 ? 1 : 0)} tokens/s out`],
    ["Running", count(sum("running")), `${count(sum("waiting"))} waiting in queues`],
    ["Healthy", `${well} of ${serving.length}`, well === serving.length ? "all regions that serve" : "see the map for the rest"],
    ["Cost", `${money(rate.costPerHour)}/h`, "at the rate of the last minute"],
    ["Carbon", tokens && grams ? `${count(grams / tokens)} g/kWh` : "–", "of the grids, by tokens made"],
  ];
  return html`<dl class="totals map-figures">${figures.map(([name, value, note]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd><p>${note}</p></div>`)}</dl>`;
}

function Legend() {
  return html`<ul class="legend"><li><i class="line run"></i>request</li><li><i class="line moved"></i>continued elsewhere</li><li><i class="line broken"></i>broke off</li>
    <li><svg class="dot hurt" viewBox="-8 -8 16 16" aria-hidden="true"><circle class="mark" r="5" /><path class="cross" d="M-3-3L3 3M3-3L-3 3" /></svg>in trouble</li></ul>`;
}

function Latest({ rows, onPick }) {
  if (!rows?.length) return null;
  return html`<section><h2 class="section">Latest requests</h2><div class="scroll"><table class="requests"><caption class="hidden">The newest requests</caption>
    <thead><tr><th>Status</th><th>When</th><th>Model</th><th>Made in</th><th class="n">Out</th><th class="n">Whole</th><th class="n">Cost</th></tr></thead>
    <tbody>${rows.map((r) => html`<tr key=${r.id} class=${`${r.status} pick`} data-id=${r.id} onClick=${() => onPick(r.id)}><td>${status(r)}</td>
      <td data-label="When"><button class="link" onClick=${() => onPick(r.id)} aria-label=${`Explain the request at ${clock(r.created_at)}`}>${ago(r.created_at)}</button></td>
      <td data-label="Model">${r.model}</td><td data-label="Region"><${Path} row=${r} />${r.grade ? html` <span class="tag">${r.grade}</span>` : null}</td><td class="n" data-label="Out">${count(r.output)}</td>
      <td class="n" data-label="Whole">${milliseconds(r.duration_ms)}</td><td class="n" data-label="Cost">${money(r.cost)}</td></tr>`)}</tbody></table></div></section>`;
}

function List({ places, picked, home, onPick }) {
  const groups = ORDER.map((status) => [status, places.filter((r) => r.status === status)]).filter(([, own]) => own.length);
  return html`<div class="region-lists">${groups.map(([status, own]) => html`<section key=${status}><h2 class="section">${own.length} ${status}</h2>
    <ul class="regions">${own.map((r) => html`<li key=${r.id}><button class=${r.id === picked ? "region picked" : "region"} aria-pressed=${r.id === picked}
      onClick=${() => onPick(r.id === picked ? null : r.id)} data-status=${r.status} data-id=${r.id}>
      <${Ring} state=${look(r)} label=${r.city} /><span><code>${r.id}</code> ${r.country}${r.id === home ? html` <b>home</b>` : null}</span>
      <span>${[hurt(r) ? condition(r) : "", load(r) ? `${r.running} running, ${r.waiting} waiting` : "", r.carbon ? `${count(r.carbon)} g/kWh` : ""].filter(Boolean).join(" · ")}</span></button></li>`)}</ul></section>`)}</div>`;
}
