/** Routing, explained: every candidate with the parts of its score, and why each loser lost. */

import { html, useState } from "/console/vendor/preact-htm.js";
import { send } from "/console/api.js";
import { clock, count } from "/console/format.js";
import { Dialog, Field, Problem } from "/console/ui.js";

const PARTS = [["rtt", "Round trip"], ["wait", "Queue"], ["prefill", "Prompt"], ["price", "Price"], ["energy", "Energy"], ["carbon", "Carbon"], ["load", "Load"]];
const SHOWN = 8;

/** Seconds of a score as milliseconds. */
const ms = (seconds) => (seconds === null || seconds === undefined ? "–" : seconds && seconds < 0.0001 ? "<0.1" : (seconds * 1000).toFixed(seconds < 0.01 && seconds ? 1 : 0));

export function Decisions({ decisions }) {
  return html`${decisions.map((d, i) => html`<${Decision} key=${d.at} decision=${d} note=${i === 0} title=${decisions.length > 1 ? `${i ? "Then" : "First"}, at ${clock(d.at)}` : ""} />`)}`;
}

function Decision({ decision, title, note }) {
  const [all, setAll] = useState(false);
  const { scored, left } = sort(decision.candidates);
  const shown = all ? scored : scored.slice(0, SHOWN);
  return html`<div class="decision">${title ? html`<h4>${title}</h4>` : null}
    <p>${decision.chosen ? html`<b>${decision.region}</b> by policy <code>${decision.policy}</code>: the lowest score of ${scored.length}.` : "No endpoint could take it."}
      ${note && scored.length ? html` <small>Scores are milliseconds to the first token; price, energy, carbon and load are counted as milliseconds too.</small>` : null}</p>
    ${scored.length ? html`<div class="scroll"><table class="candidates"><caption class="hidden">Candidates, best first</caption>
      <thead><tr><th>Region</th>${PARTS.map(([name, label]) => html`<th key=${name} class="n">${label}</th>`)}<th class="n">Score</th><th class="n">Cached</th><th>Outcome</th></tr></thead>
      <tbody>${shown.map((c) => html`<tr key=${c.name} class=${c.name === decision.chosen ? "chosen" : ""}><th scope="row">${c.region}</th>
        ${PARTS.map(([name]) => html`<td key=${name} class=${c.parts[name] ? "n" : "n nil"}>${ms(c.parts[name])}</td>`)}
        <td class="n"><b>${ms(c.score)}</b></td><td class=${c.cached ? "n" : "n nil"}>${count(c.cached)}</td><td>${outcome(c.reason)}</td></tr>`)}</tbody></table></div>` : null}
    ${scored.length > SHOWN ? html`<button class="quiet" onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show all ${scored.length}`}</button>` : null}
    ${left.length ? html`<details class="left-out"><summary>${count(left.reduce((n, [, ids]) => n + ids.length, 0))} left out before scoring</summary>
      <dl>${left.map(([why, ids]) => html`<div key=${why}><dt>${why}</dt><dd>${ids.join(", ")}</dd></div>`)}</dl></details>` : null}</div>`;
}

/** "0.035 behind" is in seconds, as scores are; the table shows milliseconds. */
const outcome = (reason) => reason.replace(/^([\d.e+-]+) behind/, (_, seconds) => `${ms(Number(seconds))} ms behind`);

function sort(candidates) {
  const left = new Map();
  for (const c of candidates) {
    if (c.score !== null) continue;
    left.set(c.reason, [...(left.get(c.reason) ?? []), c.region || c.name]);
  }
  return { scored: candidates.filter((c) => c.score !== null), left: [...left] };
}

export function Ask({ models, onClose }) {
  const [form, setForm] = useState({ model: models[0]?.id ?? "", prompt_tokens: 500, residency: "" });
  const [found, setFound] = useState(null);
  const [error, setError] = useState(null);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    const places = form.residency.split(/[\s,]+/).filter(Boolean);
    const body = { model: form.model, prompt_tokens: Number(form.prompt_tokens), ...(places.length ? { residency: { process_in: places } } : {}) };
    try {
      setFound(await send("POST", "/atoll/v1/route/explain", body));
    } catch (problem) {
      setFound(null);
      setError(problem);
    }
  };
  return html`<${Dialog} title="Where would it go?" wide onClose=${onClose}><form onSubmit=${submit}>
    <p class="faint">What routing would decide now. Nothing is sent to a model.</p>
    <div class="columns"><${Field} label="Model"><select value=${form.model} onChange=${set("model")}>
        ${models.map((m) => html`<option key=${m.id} value=${m.id} selected=${m.id === form.model}>${m.id}</option>`)}</select><//>
      <${Field} label="Prompt tokens"><input type="number" min="0" max="10000000" value=${form.prompt_tokens} onInput=${set("prompt_tokens")} /><//>
      <${Field} label="Processed in" hint="Zones, countries or regions; empty for anywhere."><input spellcheck=${false} placeholder="eu" value=${form.residency} onInput=${set("residency")} /><//></div>
    <${Problem} error=${error} />
    ${found ? html`<p>Rule: <code>${found.rule}</code></p><${Decisions} decisions=${found.decisions} />` : null}
    <footer><button type="button" class="quiet" onClick=${onClose}>Close</button><button class="primary">Explain</button></footer></form><//>`;
}
