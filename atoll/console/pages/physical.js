/** The physical loop: runs as they go on, what they made, and the policies in service. */

import { html, useState } from "/console/vendor/preact-htm.js";
import { get } from "/console/api.js";
import { ago } from "/console/format.js";
import { Artifacts } from "/console/physical/artifacts.js";
import { useRuns } from "/console/physical/feed.js";
import { Promote } from "/console/physical/gate.js";
import { Launch } from "/console/physical/launch.js";
import { Policies } from "/console/physical/policies.js";
import { label, RunPanel, State } from "/console/physical/run.js";
import { Choice, Empty, Icon, Page, Problem, Skeleton, useLoad } from "/console/ui.js";

const TABS = [["runs", "Runs"], ["artifacts", "Artifacts"], ["policies", "Policies"]];
const EVERY = 2000;
const MOST_COMPARED = 5;

const load = (what) => (signal) => get(`/atoll/v1/${what}`, { signal }).then((found) => found.data);

export function PhysicalPage() {
  const [tab, setTab] = useState("runs");
  const [artifact, setArtifact] = useState(null);
  const [launching, setLaunching] = useState(false);
  const [promoting, setPromoting] = useState(null);
  const [picked, setPicked] = useState(null);
  const runs = useLoad(load("runs"), [], EVERY);
  const artifacts = useLoad(load("artifacts"), [runs.data?.map((r) => r.steps.map((s) => s.digest)).join()]);
  const policies = useLoad(load("policies"), [], 5000);
  const show = (digest) => {
    setArtifact(digest);
    setTab("artifacts");
  };
  const started = (row) => {
    setLaunching(false);
    setTab("runs");
    setPicked(row.id);
    runs.reload();
  };
  const actions = html`<button class="primary" onClick=${() => setLaunching(true)}><${Icon} name="plus" />New run</button>`;
  return html`<${Page} wide title="Physical" note="From a scene to a served policy: simulate, synthesise, learn, validate, serve. Every step is kept, with all it was made from." actions=${actions}>
    <div class="filters"><${Choice} label="Show" value=${tab} options=${TABS} onChange=${setTab} /></div>
    ${tab === "runs" ? html`<${Runs} runs=${runs} picked=${picked} onPick=${setPicked} onArtifact=${show} onPromote=${setPromoting} />` : null}
    ${tab === "artifacts" ? html`<${Artifacts} artifacts=${artifacts} picked=${artifact} onPick=${setArtifact} onPromote=${setPromoting} />` : null}
    ${tab === "policies" ? html`<${Policies} policies=${policies} onArtifact=${show} />` : null}
    ${launching ? html`<${Launch} artifacts=${artifacts.data ?? []} onClose=${() => setLaunching(false)} onDone=${started} />` : null}
    ${promoting ? html`<${Promote} ...${promoting} onClose=${() => setPromoting(null)} onDone=${() => { setPromoting(null); setTab("policies"); policies.reload(); }} />` : null}
  <//>`;
}

function Runs({ runs, picked, onPick, onArtifact, onPromote }) {
  const [compared, setCompared] = useState([]);
  const shown = picked ?? runs.data?.[0]?.id ?? null;
  const others = compared.filter((id) => id !== shown);
  const { found, again } = useRuns(shown ? [shown, ...others] : []);
  const toggle = (id) => setCompared(compared.includes(id) ? compared.filter((each) => each !== id) : [...compared, id].slice(-MOST_COMPARED));
  const changed = () => {
    runs.reload();
    again();
  };
  if (runs.error && !runs.data) return html`<${Problem} error=${runs.error} retry=${runs.reload} />`;
  if (!runs.data) return html`<${Skeleton} rows=${6} />`;
  if (!runs.data.length) return html`<${Empty} title="No runs yet">Start one here, or with <code>atoll loop pick-place</code>. It goes on when this page is closed, and where it stopped when the machine was.<//>`;
  return html`<div class="runs-and-panel"><ul class="runs" aria-label="Runs">${runs.data.map((row) => html`<li key=${row.id} class=${row.id === shown ? "picked" : null}>
      <button class="run" aria-pressed=${row.id === shown} onClick=${() => onPick(row.id)} data-id=${row.id}><span class="step-head"><strong>${row.name}</strong><${State} state=${row.state} /></span>
        <small>${ago(row.created_at)}, seed ${row.seed} <code>${row.id.split("_").at(-1)}</code></small></button>
      <label class="compare" title="Draw its curves over those of the shown run"><input type="checkbox" checked=${compared.includes(row.id)} disabled=${row.id === shown} onChange=${() => toggle(row.id)} aria-label=${`Compare ${label(row)}`} />compare</label></li>`)}</ul>
    <${RunPanel} key=${shown} id=${shown} run=${found.get(shown)} others=${others.map((id) => ({ id, run: found.get(id) }))} onChange=${changed} onArtifact=${onArtifact} onPromote=${onPromote} /></div>`;
}
