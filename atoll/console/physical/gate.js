/** The gate's report: what was asked of a policy, what it showed, and the way into service for one that passed. */

import { html, useState } from "/console/vendor/preact-htm.js";
import { call, get, send } from "/console/api.js";
import { file, Film, save } from "/console/physical/view.js";
import { Dialog, Field, Problem, Skeleton, useLoad } from "/console/ui.js";

const percent = (rate) => `${(rate * 100).toFixed(rate > 0 && rate < 0.1 ? 1 : 0)} %`;

/** `onPromote({policy, report, task})` is asked for where the gate was passed. */
export function Gate({ digest, onPromote }) {
  const report = useLoad(async (signal) => {
    const artifact = await get(`/atoll/v1/artifacts/${digest}`, { signal });
    if (!("report.json" in artifact.files)) return { artifact, told: null };
    return { artifact, told: await (await call(file(digest, "report.json"), { signal })).json() };
  }, [digest]);
  if (report.error) return html`<${Problem} error=${report.error} retry=${report.reload} />`;
  if (!report.data) return html`<${Skeleton} rows=${3} />`;
  const { told, artifact } = report.data;
  if (!told?.checks) return html`<p class="faint">This report is not of the gate.</p>`;
  const passed = told.decision === "pass";
  const films = Object.keys(artifact.files).filter((name) => name.endsWith(".mp4"));
  return html`<div class="gate"><header class=${passed ? "verdict pass" : "verdict fail"}>
      <div><strong>${passed ? "Passed" : "Not passed"}</strong><p>policy <code>${told.policy.slice(0, 12)}</code> on ${told.task}: ${percent(told.evidence.nominal.rate)} of ${told.evidence.nominal.episodes} episodes</p></div>
      <div class="actions">${"index.html" in artifact.files ? html`<button class="quiet" onClick=${() => save(digest, "index.html")}>Save the page</button>` : null}
        ${passed && onPromote ? html`<button class="primary" onClick=${() => onPromote({ policy: told.policy, report: digest, task: told.task })}>Promote</button>` : null}</div></header>
    <${Stress} evidence=${told.evidence} />
    <div class="scroll"><table class="checks"><caption class="hidden">Checks of the gate</caption><thead><tr><th>Check</th><th>Holds</th><th>Why</th></tr></thead>
      <tbody>${told.checks.map((check) => html`<tr key=${check.name} class=${check.passed ? "" : "fails"}><th scope="row">${check.name}</th><td>${check.passed ? "yes" : "no"}</td><td>${check.why}</td></tr>`)}</tbody></table></div>
    ${films.length ? html`<div class="films">${films.map((name) => html`<${Film} key=${name} digest=${digest} name=${name} />`)}</div>` : null}</div>`;
}

/** Success with its 95 % interval: as it is, under stress, simulated otherwise. */
function Stress({ evidence }) {
  const stress = Object.entries(evidence.stress).sort(([a], [b]) => a - b);
  const bars = [["as it is", evidence.nominal], ...stress.map(([level, trial]) => [`stress ${level}`, trial]), ...Object.entries(evidence.variants),
    ...(evidence.incumbent ? [["the incumbent", evidence.incumbent]] : [])];
  return html`<dl class="rates">${bars.map(([name, { rate, interval: [low, high] }]) => html`<div key=${name}><dt>${name}</dt>
    <dd><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect class="all" width="100" height="10" /><rect class="rate" width=${rate * 100} height="10" />
      <rect class="interval" x=${low * 100} y="4" width=${Math.max(0.6, (high - low) * 100)} height="2" /></svg><span>${percent(rate)} <small>${percent(low)} to ${percent(high)}</small></span></dd></div>`)}</dl>`;
}

export function Promote({ policy, report, task, onClose, onDone }) {
  const [name, setName] = useState(task);
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    try {
      onDone(await send("POST", `/atoll/v1/policies/${encodeURIComponent(name)}/promote`, { policy, report }));
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<${Dialog} title="Promote" onClose=${onClose}><form onSubmit=${submit}>
    <p>Policy <code>${policy.slice(0, 12)}</code> passed the gate. Under this name it is served from now on; sessions with the version before are ended safely.</p>
    <${Field} label="Name" error=${error?.param === "name" ? error.message : null}><input name="name" required autocomplete="off" value=${name} onInput=${(e) => setName(e.target.value)} /><//>
    <${Problem} error=${error} />
    <footer><button type="button" class="quiet" onClick=${onClose}>Cancel</button><button class="primary">Promote</button></footer></form><//>`;
}
