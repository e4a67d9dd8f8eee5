/** What runs have made: a list, and of each its settings, files, films and lineage. */

import { html, useState } from "/console/vendor/preact-htm.js";
import { get } from "/console/api.js";
import { ago, bytes } from "/console/format.js";
import { Gate } from "/console/physical/gate.js";
import { Lineage } from "/console/physical/lineage.js";
import { Film, save } from "/console/physical/view.js";
import { Copy, Empty, Problem, Skeleton, useLoad } from "/console/ui.js";

const MANY = 40;

export function Artifacts({ artifacts, picked, onPick, onPromote }) {
  if (artifacts.error) return html`<${Problem} error=${artifacts.error} retry=${artifacts.reload} />`;
  if (!artifacts.data) return html`<${Skeleton} />`;
  if (!artifacts.data.length) return html`<${Empty} title="Nothing made yet">Runs leave data sets, policies and reports here, each with all that it was made from.<//>`;
  return html`<div class=${picked ? "two with-panel" : "two"}><div class="scroll"><table class="artifacts"><caption class="hidden">Artifacts</caption>
    <thead><tr><th>Artifact</th><th>Stage</th><th class="n wide">Files</th><th class="n">Size</th><th>Made</th></tr></thead>
    <tbody>${artifacts.data.map((a) => html`<tr key=${a.digest} class=${a.digest === picked ? "picked" : null}><th scope="row"><button class="link" aria-pressed=${a.digest === picked} onClick=${() => onPick(a.digest)}>${a.kind} ${a.digest.slice(0, 12)}</button></th>
      <td>${a.stage}</td><td class="n wide">${a.files}</td><td class="n">${bytes(a.bytes)}</td><td>${ago(a.made_at)}</td></tr>`)}</tbody></table></div>
    ${picked ? html`<${Artifact} key=${picked} digest=${picked} onPick=${onPick} onPromote=${onPromote} />` : null}</div>`;
}

function Artifact({ digest, onPick, onPromote }) {
  const found = useLoad((signal) => get(`/atoll/v1/artifacts/${digest}`, { signal }), [digest]);
  const [all, setAll] = useState(false);
  const [error, setError] = useState(null);
  if (found.error) return html`<${Problem} error=${found.error} retry=${found.reload} />`;
  if (!found.data) return html`<section class="run-panel"><${Skeleton} rows=${4} /></section>`;
  const { kind, stage, config, files, lineage, versions } = found.data;
  const names = Object.keys(files);
  const films = names.filter((name) => name.endsWith(".mp4"));
  const take = (name) => save(digest, name).catch(setError);
  return html`<section class="run-panel" aria-label="Artifact"><header><div><h2>${kind} <code>${digest.slice(0, 12)}</code></h2><p class="faint">made by ${stage} in ${found.data.path}</p></div>
      <${Copy} text=${digest} label="Copy digest" /></header>
    <h3 class="section">Made from</h3><${Lineage} lineage=${lineage} onPick=${onPick} />
    ${kind === "report" ? html`<h3 class="section">Gate</h3><${Gate} digest=${digest} onPromote=${onPromote} />` : null}
    ${films.length && kind !== "report" ? html`<div class="films">${films.slice(0, 6).map((name) => html`<${Film} key=${name} digest=${digest} name=${name} />`)}</div>` : null}
    <h3 class="section">Settings</h3><dl class="detail">${Object.entries(config).map(([name, value]) => html`<div key=${name}><dt>${name.replaceAll("_", " ")}</dt><dd><code>${JSON.stringify(value)}</code></dd></div>`)}</dl>
    <h3 class="section">${names.length} files</h3><${Problem} error=${error} />
    <ul class="files">${names.slice(0, all ? names.length : MANY).map((name) => html`<li key=${name}><button class="link" onClick=${() => take(name)}>${name}</button><code>${files[name].slice(0, 12)}</code></li>`)}</ul>
    ${names.length > MANY && !all ? html`<button class="quiet" onClick=${() => setAll(true)}>Show all ${names.length}</button>` : null}
    <p class="faint">${Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(" · ")}</p></section>`;
}
