/** Ordering a run: a recipe or one stage, with a form made from the schema of each config. */

import { html, useState } from "/console/vendor/preact-htm.js";
import { get, send } from "/console/api.js";
import { date } from "/console/format.js";
import { Dialog, Field, Problem, Skeleton, useLoad } from "/console/ui.js";

const KINDS = { dataset: "dataset", policy: "policy", incumbent: "policy", report: "report" };

export function Launch({ artifacts, onClose, onDone }) {
  const offer = useLoad((signal) => get("/atoll/v1/stages", { signal }), []);
  const [chosen, setChosen] = useState(null);
  const [seed, setSeed] = useState("0");
  const [typed, setTyped] = useState({});
  const [inputs, setInputs] = useState({});
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const { data: stages = [], recipes = [] } = offer.data ?? {};
  const first = recipes.length ? `recipe:${recipes[0].name}` : stages.length ? `stage:${stages[0].name}` : "";
  const [kind, name] = (chosen ?? first).split(":");
  const recipe = kind === "recipe" ? recipes.find((r) => r.name === name) : null;
  const stage = kind === "stage" ? stages.find((s) => s.name === name) : null;
  const steps = recipe ? recipe.steps : stage ? [{ name: stage.name, stage: stage.name, config: {}, inputs: {} }] : [];
  const pick = (value) => {
    setChosen(value);
    setTyped({});
    setInputs({});
    setError(null);
  };
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const set = Object.fromEntries(Object.entries(typed).map(([step, fields]) => [step, given(fields, schemaOf(stages, steps, step))]));
      const asked = stage ? { steps: [{ name: stage.name, stage: stage.name, inputs: filled(inputs) }], set } : { recipe: name, set };
      onDone(await send("POST", "/atoll/v1/runs", { ...asked, seed: Number(seed) || 0 }));
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<${Dialog} title="New run" wide onClose=${onClose}><form class="launch" onSubmit=${submit}>
    ${offer.error ? html`<${Problem} error=${offer.error} retry=${offer.reload} />` : !offer.data ? html`<${Skeleton} rows=${3} />` : html`
    <div class="columns"><${Field} label="What to do"><select name="what" value=${chosen ?? first} onChange=${(e) => pick(e.target.value)}>
        ${recipes.length ? html`<optgroup label="Recipes">${recipes.map((r) => html`<option key=${r.name} value=${`recipe:${r.name}`} selected=${recipe?.name === r.name}>${r.name}</option>`)}</optgroup>` : null}
        <optgroup label="Single stages">${stages.map((s) => html`<option key=${s.name} value=${`stage:${s.name}`} selected=${stage?.name === s.name}>${s.name}</option>`)}</optgroup></select><//>
      <${Field} label="Seed" hint="The same seed makes the same artifacts."><input name="seed" type="number" min="0" max="2147483647" step="1" value=${seed} onInput=${(e) => setSeed(e.target.value)} /><//></div>
    <p class="faint about">${recipe?.about ?? stage?.about}</p>
    ${stage ? html`<${Inputs} stage=${stage} artifacts=${artifacts} value=${inputs} onChange=${setInputs} />` : null}
    ${steps.map((step) => html`<${StepForm} key=${`${chosen}/${step.name}`} step=${step} open=${steps.length === 1} schema=${schemaOf(stages, steps, step.name)} value=${typed[step.name] ?? {}}
      onChange=${(fields) => setTyped({ ...typed, [step.name]: fields })} />`)}
    <${Problem} error=${error} />
    <footer><button type="button" class="quiet" onClick=${onClose}>Cancel</button><button class="primary" disabled=${busy || !steps.length}>Start</button></footer>`}
  </form><//>`;
}

function schemaOf(stages, steps, step) {
  const found = stages.find((s) => s.name === steps.find((each) => each.name === step)?.stage);
  return found?.config.properties ?? {};
}

const filled = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value));

function Inputs({ stage, artifacts, value, onChange }) {
  return stage.takes.map((take) => {
    const role = take.replace("?", "");
    const fits = artifacts.filter((a) => a.kind === (KINDS[role] ?? a.kind));
    return html`<${Field} key=${take} label=${`From: ${role}`} hint=${take.endsWith("?") ? "Optional." : null}>
      <select name=${role} required=${!take.endsWith("?")} value=${value[role] ?? ""} onChange=${(e) => onChange({ ...value, [role]: e.target.value })}>
        <option value="">${fits.length ? "choose an artifact" : "no artifact of this kind yet"}</option>
        ${fits.map((a) => html`<option key=${a.digest} value=${a.digest} selected=${value[role] === a.digest}>${a.kind} ${a.digest.slice(0, 8)} by ${a.stage}, ${date(a.made_at)}</option>`)}</select><//>`;
  });
}

function StepForm({ step, open, schema, value, onChange }) {
  const names = Object.keys(schema).filter((name) => name !== "seed");
  const set = (name) => (e) => onChange({ ...value, [name]: e.target.value });
  return html`<details class="step-form" open=${open}><summary>${step.name} ${step.stage !== step.name && html`<span class="faint">${step.stage}</span>`}</summary>
    <div class="columns">${names.map((name) => {
      const usual = step.config[name] ?? schema[name].default;
      return html`<${Field} key=${name} label=${name.replaceAll("_", " ")}><${Setting} name=${`${step.name}.${name}`} schema=${schema[name]} usual=${usual} value=${value[name] ?? ""} onChange=${set(name)} /><//>`;
    })}</div></details>`;
}

function Setting({ name, schema, usual, value, onChange }) {
  const types = (schema.anyOf ?? [schema]).map((each) => each.type);
  const choices = schema.enum ?? (types.includes("boolean") ? [true, false] : null);
  if (choices) {
    return html`<select name=${name} value=${value} onChange=${onChange}><option value="">${`${shown(usual)} (as it is)`.trim()}</option>
      ${choices.map((choice) => html`<option key=${choice} value=${String(choice)} selected=${value === String(choice)}>${String(choice)}</option>`)}</select>`;
  }
  return html`<input name=${name} autocomplete="off" placeholder=${shown(usual)} value=${value} onInput=${onChange} />`;
}

const shown = (value) => (value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value));

/** What was typed, as the types that the schema asks for; the server judges what does not fit. */
function given(fields, schema) {
  return Object.fromEntries(Object.entries(filled(fields)).map(([name, text]) => [name, schema[name]?.type === "string" ? text : parsed(text)]));
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
