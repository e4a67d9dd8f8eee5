/** One region: what it is, how it fares, opening and closing it, and breaking it on purpose. */

import { html, useEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { get, send } from "/console/api.js";
import { count, milliseconds, money } from "/console/format.js";
import { DrillPanel } from "/console/map/drill.js";
import { condition, hurt } from "/console/map/world.js";
import { Icon, Problem, Ring, useLoad } from "/console/ui.js";

const LOOK = { live: "ready", draining: "starting", building: "starting", announced: "missing", retired: "failed" };
const SERVED = { shared: "in this process", process: "by a process of its own", joined: "by another machine" };
/** What may be done: [status to become, its name, what it means]. */
const STEPS = {
  announced: [["live", "Open", "It begins to take requests."]],
  building: [["live", "Open", "It begins to take requests."]],
  live: [["draining", "Drain", "It takes no new requests; those under way finish."]],
  draining: [["live", "Open again", "It takes requests again."], ["retired", "Close", "Requests that still run get a minute, then go on elsewhere."]],
  retired: [["live", "Open", "It begins to take requests."]],
};

export function RegionPanel({ region: r, home, rate, places, latest, admin, models, onChange, onRequest, onClose }) {
  const panel = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    panel.current.focus({ preventScroll: true });
    const beside = matchMedia("(min-width: 1121px)").matches;
    (beside ? panel.current.parentElement : panel.current).scrollIntoView({ block: beside ? "start" : "nearest" });
    return () => (before?.isConnected ? before : document.querySelector(`.region[data-id="${r.id}"]`))?.focus({ preventScroll: true });
  }, []);
  const detail = useLoad((signal) => get(`/atoll/v1/regions/${encodeURIComponent(r.id)}`, { signal }), [r.id]);
  const sources = detail.data?.sources ?? {};
  const guess = (name) => (sources[name]?.startsWith("estimate") ? html` <small>estimate</small>` : null);
  const far = r.id === home ? "the gateway is here" : `${milliseconds(r.rtt_ms)}${r.wan_emulated ? ", emulated" : r.served_by === "shared" ? " by the catalogue; not emulated" : ""}`;
  const facts = [
    ["Country", [r.country, r.jurisdiction && r.jurisdiction !== r.country && `law of ${r.jurisdiction}`].filter(Boolean).join(", ")],
    ["Zone sets", r.zones.join(", ")],
    ["Sites", `${count(r.availability_zones)} availability ${r.availability_zones === 1 ? "zone" : "zones"}`],
    ["Round trip", far],
    ["Served", SERVED[r.served_by] ?? "not served now"],
    ["Endpoints", r.endpoints ? `${r.healthy} of ${r.endpoints} healthy` : ""],
    ["Load", r.served_by ? `${count(r.running)} running, ${count(r.waiting)} waiting` : ""],
    ["Last minute", rate ? `${count(rate.requests)} requests, ${count(rate.tokens)} tokens` : r.served_by ? "no requests" : ""],
    ["Cost", rate ? `${money(rate.cost * 60)} an hour at this rate` : ""],
    ["Grid carbon", r.carbon ? html`${count(r.carbon)} g/kWh${guess("carbon")}` : ""],
    ["Electricity", r.electricity ? html`$${r.electricity}/kWh${guess("electricity")}` : ""],
  ];
  return html`<aside class="region-panel" ref=${panel} tabindex="-1" aria-labelledby="region-title" onKeyDown=${(e) => e.key === "Escape" && onClose()}>
    <header><div><h2 id="region-title">${r.city}</h2><p><code>${r.id}</code></p></div>
      <button class="icon" aria-label="Close panel" onClick=${onClose}><${Icon} name="close" /></button></header>
    <p class="chips"><${Ring} state=${hurt(r) ? "failed" : LOOK[r.status]} label=${condition(r)} />${r.wan_emulated ? html`<span class="tag">latency emulated</span>` : null}</p>
    <dl class="detail">${facts.filter(([, value]) => value).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${Object.keys(sources).length ? html`<${Sources} sources=${sources} />` : null}
    ${admin ? html`<${Steps} region=${r} onChange=${() => { onChange(); panel.current?.focus(); }} />` : null}
    ${admin && r.served_by && (r.status === "live" || r.status === "draining") ? html`<${DrillPanel} region=${r} places=${places} latest=${latest} models=${models} onChange=${onChange} onRequest=${onRequest} />` : null}
  </aside>`;
}

/** Where the catalogue has its values from; the same source is named once. */
function Sources({ sources }) {
  const by = new Map();
  for (const [name, source] of Object.entries(sources)) by.set(source, [...(by.get(source) ?? []), name.replaceAll("_", " ")]);
  return html`<details class="sources"><summary>Sources</summary><dl>${[...by].map(([source, names]) => html`<div key=${source}><dt>${names.join(", ")}</dt>
    <dd>${source.split(/(https?:\/\/\S+)/).map((part) => (part.startsWith("http") ? html`<a href=${part} target="_blank" rel="noopener noreferrer">${new URL(part).host}</a>` : part))}</dd></div>`)}</dl></details>`;
}

function Steps({ region: r, onChange }) {
  const [busy, setBusy] = useState(null);
  const [error, setError] = useState(null);
  const become = async (status) => {
    setBusy(status);
    setError(null);
    try {
      await send("PATCH", `/atoll/v1/regions/${encodeURIComponent(r.id)}`, { status });
    } catch (problem) {
      setError(problem);
    }
    setBusy(null);
    onChange();
  };
  return html`<div class="steps">${STEPS[r.status].map(([status, name, note]) => html`<div key=${status}>
      <button class=${status === "retired" ? "quiet danger" : "quiet"} disabled=${busy !== null} onClick=${() => become(status)} aria-describedby=${`step-${status}`}>${busy === status ? `${name}…` : name}</button>
      <small id=${`step-${status}`}>${note}</small></div>`)}<${Problem} error=${error} /></div>`;
}
