/** Figures of runs as people read them: curves over each other, and a table of where they ended. */

import { html, useMemo, useState } from "/console/vendor/preact-htm.js";
import { Lines } from "/console/chart.js";
import { curve, figuresOf } from "/console/physical/feed.js";

const FIRST = ["success", "return", "accepted", "loss"];

export function amount(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 10_000) return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return Number(value.toPrecision(size && size < 0.001 ? 2 : 4)).toString();
}

export const words = (name) => name.replaceAll("_", " ").replace(" per second", "/s");

/** The curves of one step. `runs` is [{name, lines}]: the picked run, then those it is compared with. */
export function Curves({ step, runs }) {
  const names = figuresOf(runs[0].lines);
  const [wanted, setWanted] = useState(null);
  const figure = names.includes(wanted) ? wanted : [...FIRST, ...names].find((name) => varies(runs[0].lines, name)) ?? names[0];
  const curves = useMemo(() => runs.map((run) => ({ name: run.name, points: curve(run.lines, figure) })), [figure, ...runs.map((r) => r.lines)]);
  if (!names.length) return null;
  return html`<div class="curves"><label class="figure-pick"><span>Figure</span>
      <select value=${figure} onChange=${(e) => setWanted(e.target.value)}>${names.map((name) => html`<option key=${name} value=${name} selected=${name === figure}>${words(name)}</option>`)}</select></label>
    <${Lines} label=${`${words(figure)} of ${step}`} curves=${curves} show=${amount} />
    <${Ends} runs=${runs} names=${names} /></div>`;
}

const varies = (lines, name) => new Set(curve(lines, name).map(([, y]) => y)).size > 1;

function Ends({ runs, names }) {
  const last = (lines, name) => lines.findLast((line) => name in line.figures)?.figures[name];
  return html`<div class="scroll"><table class="ends"><caption class="hidden">Latest figures</caption>
    <thead><tr><th>Figure</th>${runs.map((run) => html`<th key=${run.name} class="n">${run.name}</th>`)}</tr></thead>
    <tbody>${names.map((name) => html`<tr key=${name}><th scope="row">${words(name)}</th>
      ${runs.map((run) => html`<td key=${run.name} class="n">${amount(last(run.lines, name))}</td>`)}</tr>`)}</tbody></table></div>`;
}
