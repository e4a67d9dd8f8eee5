import { html, useState } from "/console/vendor/preact-htm.js";
import { ApiError, call, events, get, send } from "/console/api.js";
import { bytes, count } from "/console/format.js";
import { Dialog, Field, Icon, Page, Problem, Ring, Skeleton, sentence, useLoad } from "/console/ui.js";

const TASKS = [["chat", "Chat"], ["embedding", "Embedding"], ["transcription", "Speech to text"], ["speech", "Text to speech"],
  ["ocr", "Reading text in pictures"], ["vad", "Voice activity"]];

export function ModelsPage({ admin, models }) {
  const [adding, setAdding] = useState(null);
  const [removing, setRemoving] = useState(null);
  const states = useLoad((signal) => get("/atoll/v1/status", { signal }).then((found) => found.models), [], 8000);
  const catalogue = useLoad((signal) => get("/atoll/v1/catalogue", { signal }).then((found) => found.data), [models.data?.length]);
  const cards = (models.data ?? []).filter((m) => !m.tier);
  const detail = (id) => states.data?.find((m) => m.id === id)?.detail;
  const action = admin ? html`<button class="primary" onClick=${() => setAdding({ source: "" })}><${Icon} name="plus" />Add model</button>` : null;

  return html`<${Page} title="Models" note="What this cloud can do, and what more it could." actions=${action}>
    <${Problem} error=${models.error} retry=${models.reload} />
    ${!models.data && !models.error ? html`<${Skeleton} />` : null}
    ${models.data ? html`<${Tiers} models=${models} cards=${cards} admin=${admin} />` : null}
    ${TASKS.map(([task, title]) => [task, title, cards.filter((m) => m.task === task)]).filter(([, , own]) => own.length).map(([task, title, own]) =>
      html`<section key=${task}><h2 class="section">${title}</h2><ul class="cards">${own.map((m) =>
        html`<${ModelCard} key=${m.id} model=${m} detail=${detail(m.id)} onRemove=${admin ? setRemoving : null} />`)}</ul></section>`)}
    <${Catalogue} catalogue=${catalogue} onAdd=${admin ? (m) => setAdding({ source: m.id, model: m }) : null} />
    ${adding ? html`<${Add} ...${adding} onClose=${() => setAdding(null)} onDone=${() => { models.reload(); catalogue.reload(); }} />` : null}
    ${removing ? html`<${Remove} model=${removing} onClose=${() => setRemoving(null)} onDone=${() => { setRemoving(null); models.reload(); catalogue.reload(); }} />` : null}
  <//>`;
}

function Tiers({ models, cards, admin }) {
  const [error, setError] = useState(null);
  const set = async (tier, model) => {
    setError(null);
    try {
      await send("PUT", `/atoll/v1/tiers/${tier}`, { model });
    } catch (problem) {
      setError(problem);
    }
    models.reload();
  };
  const talkers = cards.filter((m) => m.task === "chat");
  return html`<section class="tiers"><h2 class="hidden">Service tiers</h2>
    ${[["max", "The strongest for text"], ["omni", "Text, images and voice, in real time"]].map(([tier, note]) => {
      const now = models.data.find((m) => m.id === tier)?.root ?? "";
      return html`<div class="tier" key=${tier}><h3><code>${tier}</code></h3><p>${note}</p>
        <select aria-label=${`Model behind ${tier}`} disabled=${!admin} value=${now} onChange=${(e) => set(tier, e.target.value)}>
          ${now ? null : html`<option value="">no model</option>`}
          ${talkers.map((m) => html`<option key=${m.id} value=${m.id} selected=${m.id === now}>${m.title}</option>`)}</select></div>`;
    })}<${Problem} error=${error} /></section>`;
}

function price({ price: p, unit }) {
  if (!p.input && !p.output) return "free";
  const parts = [[p.input, "in"], [p.output, "out"]].filter(([value]) => value).map(([value, way]) => `$${value} ${way}`);
  return `${parts.join(", ")} per million ${unit}s`;
}

function ModelCard({ model, detail, onRemove }) {
  const abilities = [
    model.tools !== "none" && "tools",
    model.json_schema && "JSON schema",
    model.thinking !== "none" && "thinking",
  ].filter(Boolean);
  return html`<li class="card model">
    <div class="card-title"><h3>${model.title}</h3><${Ring} state=${model.state} /></div>
    <p class="chips"><code>${model.id}</code><span class="flow">${model.input.join(", ") || "–"} → ${model.output.join(", ") || (model.task === "embedding" ? "numbers" : "times")}</span>
      ${abilities.map((name) => html`<span class="tag" key=${name}>${name}</span>`)}</p>
    ${model.note ? html`<p>${sentence(model.note)}</p>` : null}
    ${detail ? html`<p class="problem">${detail}</p>` : null}
    <p class="faint">${[model.context ? `${count(model.context)} tokens of context` : null,
      model.voices.length ? `${model.voices.length > 1 ? "voices" : "voice"}: ${model.voices.join(", ")}` : null, price(model), model.licence, model.jurisdiction].filter(Boolean).join(" · ")}</p>
    ${onRemove && model.removable ? html`<div class="actions"><button class="quiet danger" onClick=${() => onRemove(model)} aria-label=${`Remove ${model.title}`}>Remove</button></div>` : null}
  </li>`;
}

function Catalogue({ catalogue, onAdd }) {
  return html`<section><h2 class="section">Catalogue</h2>
    <p class="faint">Well-known open models that are not installed. Weights are fetched when you add one; the memory is for weights and context.</p>
    <${Problem} error=${catalogue.error} retry=${catalogue.reload} />
    ${catalogue.data?.length ? html`<div class="scroll"><table><caption class="hidden">Catalogue</caption><thead><tr><th>Model</th><th class="n">Download</th><th class="n">Memory</th><th>Licence</th><th><span class="hidden">Action</span></th></tr></thead>
      <tbody>${catalogue.data.map((m) => html`<tr key=${m.id}><th scope="row">${m.title}<br /><code>${m.id}</code></th><td class="n">${bytes(m.download_bytes)}</td>
        <td class="n">${bytes(m.memory_bytes)}${m.fits ? null : html`<br /><span class="tag hot">does not fit here</span>`}</td><td>${m.licence}</td>
        <td>${onAdd && m.fits ? html`<button class="quiet" onClick=${() => onAdd(m)} aria-label=${`Add ${m.title}`}>Add</button>` : null}</td></tr>`)}</tbody></table></div>` : null}
    ${catalogue.data?.length === 0 ? html`<p class="faint">Everything in the catalogue is installed.</p>` : null}</section>`;
}

function Add({ source, model, onClose, onDone }) {
  const [form, setForm] = useState({ source, id: "", model: "", key_env: "" });
  const [step, setStep] = useState(null);
  const [error, setError] = useState(null);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const remote = /^https?:/.test(form.source);

  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    setStep({ label: "Asking", done: 0, total: 0 });
    const given = Object.entries(form).filter(([name, value]) => value && (remote || !["model", "key_env"].includes(name)));
    try {
      await install(Object.fromEntries(given), setStep);
      onDone();
    } catch (problem) {
      setError(problem);
      setStep(null);
    }
  };
  if (step?.finished) {
    return html`<${Dialog} title="Added" onClose=${onClose}><p>${step.finished.title} is installed and can be used as <code>${step.finished.id}</code>.</p>
      <footer><button class="primary" onClick=${onClose}>Done</button></footer><//>`;
  }
  return html`<${Dialog} title=${model ? `Add ${model.title}` : "Add a model"} onClose=${onClose}><form onSubmit=${submit}>
    ${model ? html`<p>${bytes(model.download_bytes)} to download, ${bytes(model.memory_bytes)} of memory.</p>` : html`
    <${Field} label="Where it is" hint=${html`A catalogue name, <code>hf:owner/repository</code>, the path of a GGUF file on the server, or the base URL of an OpenAI-compatible service.`}>
      <input name="source" required autofocus spellcheck=${false} placeholder="hf:Qwen/Qwen3-8B-GGUF" value=${form.source} onInput=${set("source")} /><//>
    <${Field} label="Name here (optional)"><input name="id" spellcheck=${false} pattern="[a-z0-9][a-z0-9._\\-]*" value=${form.id} onInput=${set("id")} /><//>
    ${remote ? html`<${Field} label="Model name there"><input name="model" required spellcheck=${false} value=${form.model} onInput=${set("model")} /><//>
      <${Field} label="Variable with its key (optional)" hint="The name of an environment variable of the server; the key itself is never stored."><input name="key_env" spellcheck=${false} value=${form.key_env} onInput=${set("key_env")} /><//>` : null}`}
    <${Problem} error=${error} />
    ${step ? html`<div role="status"><p>${step.label}${step.total ? ` · ${bytes(step.done)} of ${bytes(step.total)}` : "…"}</p>
      <progress max=${step.total || null} value=${step.total ? step.done : null} aria-label="Progress"></progress></div>` : null}
    <footer><button type="button" class="quiet" onClick=${onClose}>${step ? "Hide" : "Cancel"}</button><button class="primary" disabled=${step !== null}>Add</button></footer>
  </form><//>`;
}

async function install(body, onStep) {
  const response = await call("/atoll/v1/models", { method: "POST", body });
  for await (const { event, data } of events(response)) {
    if (event === "progress") onStep(data);
    if (event === "error") throw new ApiError(data.error.message, data.error);
    if (event === "done") return onStep({ finished: data.model });
  }
  throw new ApiError("The connection ended before the model was installed. Add it again: a download resumes.");
}

function Remove({ model, onClose, onDone }) {
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    try {
      await send("DELETE", `/atoll/v1/models/${encodeURIComponent(model.id)}`);
      onDone();
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<${Dialog} title=${`Remove ${model.title}?`} onClose=${onClose}><form onSubmit=${submit}>
    <p>Requests for <code>${model.id}</code> are refused from then on. You can add it again later.</p><${Problem} error=${error} />
    <footer><button type="button" class="quiet" autofocus onClick=${onClose}>Keep it</button><button class="primary danger">Remove</button></footer></form><//>`;
}
