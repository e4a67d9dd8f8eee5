/** One run: its steps, what it shows now, its curves beside those of others, what it made. */

import { html, useEffect, useState } from "/console/vendor/preact-htm.js";
import { send } from "/console/api.js";
import { ago, span } from "/console/format.js";
import { bySpeed, path, underWay } from "/console/physical/feed.js";
import { amount, Curves, words } from "/console/physical/figures.js";
import { Gate } from "/console/physical/gate.js";
import { LiveView } from "/console/physical/view.js";
import { Problem, Ring, Skeleton } from "/console/ui.js";

const RINGS = { queued: "missing", waiting: "missing", running: "starting", done: "ready", failed: "failed", corrupt: "failed", cancelled: "missing" };
const BRIEF = 3;

export const State = ({ state }) => html`<${Ring} state=${RINGS[state]} label=${state} />`;

export function RunPanel({ id, run, others, onChange, onArtifact, onPromote }) {
  const [error, setError] = useState(null);
  const [picked, setPicked] = useState(null);
  const row = run?.row;
  const running = row?.steps.find((step) => step.state === "running");
  useEffect(() => setPicked(null), [id]);
  if (!row) return html`<section class="run-panel" aria-label="Run">${run?.error ? html`<${Problem} error=${run.error} />` : html`<${Skeleton} rows=${5} />`}</section>`;
  const told = row.steps.filter((step) => run.lines[step.name]?.length);
  const shown = row.steps.find((step) => step.name === picked) ?? running ?? told.at(-1) ?? row.steps[0];
  const act = async (action) => {
    setError(null);
    try {
      await send("POST", `${path(id)}/${action}`);
    } catch (problem) {
      setError(problem);
    }
    onChange();
  };
  const compared = others.filter((other) => other.run?.row && other.run.lines[shown.name]?.length).map((other) => ({ name: label(other.run.row), lines: other.run.lines[shown.name] }));
  return html`<section class="run-panel" aria-label="Run">
    <header><div><h2>${row.name}</h2><p class="faint"><code>${row.id}</code> seed ${row.seed}, ${ago(row.created_at)}${row.ended_at ? `, took ${span(row.ended_at - row.created_at)}` : ""}</p></div>
      <div class="actions"><${State} state=${row.state} />
        ${underWay(row) ? html`<button class="quiet danger" onClick=${() => act("cancel")}>Cancel</button>` : null}
        ${["failed", "cancelled"].includes(row.state) ? html`<button class="primary" onClick=${() => act("resume")}>Resume</button>` : null}</div></header>
    <${Problem} error=${error ?? run.error} />
    ${row.error ? html`<${Problem} error=${row.error} />` : null}
    <ol class="chain">${row.steps.map((step) => html`<${Step} key=${step.name} step=${step} picked=${step === shown} onPick=${() => setPicked(step.name)} onArtifact=${onArtifact} />`)}</ol>
    ${running ? html`<${LiveView} key=${running.name} run=${id} step=${running.name} />` : null}
    <h3 class="section">${shown.name}</h3>
    ${shown.renderer ? html`<p class="faint">Pictures by ${shown.renderer}</p>` : null}
    ${shown.kind === "report" && shown.digest ? html`<${Gate} digest=${shown.digest} onPromote=${onPromote} />` : null}
    <${Curves} key=${shown.name} step=${shown.name} runs=${[{ name: label(row), lines: run.lines[shown.name] ?? [] }, ...compared]} />
  </section>`;
}

export const label = (row) => `${row.name} ${row.id.split("_").at(-1)}`;

function Step({ step, picked, onPick, onArtifact }) {
  const part = step.state === "done" ? 1 : step.total ? Math.min(1, step.done / step.total) : 0;
  const brief = bySpeed(Object.keys(step.figures)).slice(0, BRIEF).map((name) => `${words(name)} ${amount(step.figures[name])}`).join(" · ");
  return html`<li class=${picked ? "picked" : null}><button class="step" aria-pressed=${picked} onClick=${onPick}>
      <span class="step-head"><strong>${step.name}</strong><${State} state=${step.state} /></span>
      <progress max="1" value=${part} aria-label=${`${step.name}: ${Math.round(part * 100)} %`}></progress>
      <small>${brief || step.stage}</small></button>
    ${step.digest ? html`<button class="link" onClick=${() => onArtifact(step.digest)}>${step.kind} ${step.digest.slice(0, 8)}</button>` : null}</li>`;
}
