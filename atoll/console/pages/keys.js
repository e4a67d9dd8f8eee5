import { html, useState } from "/console/vendor/preact-htm.js";
import { get, send } from "/console/api.js";
import { count, date, money } from "/console/format.js";
import { Choice, Copy, Dialog, Empty, Field, Icon, Page, Problem, Skeleton, useLoad } from "/console/ui.js";

const LIMITS = [
  ["requests_per_minute", "Requests per minute", "1"],
  ["tokens_per_minute", "Tokens per minute", "1"],
  ["budget_per_month", "Budget per month, US dollars", "any"],
];
const LIVES = [["", "Never"], [86400, "In a day"], [7 * 86400, "In a week"], [30 * 86400, "In 30 days"], [365 * 86400, "In a year"]];

export function KeysPage({ me }) {
  const keys = useLoad((signal) => get("/atoll/v1/keys", { signal }).then((found) => found.data), [], 15000);
  const [open, setOpen] = useState(null);
  const close = () => setOpen(null);
  const done = (next = null) => {
    setOpen(next);
    keys.reload();
  };
  const shown = (keys.data ?? []).toSorted((a, b) => usable(b) - usable(a) || b.created_at - a.created_at);
  const create = html`<button class="primary" onClick=${() => setOpen({ kind: "create" })}><${Icon} name="plus" />Create key</button>`;

  return html`<${Page} title="Keys" note="Who may call this cloud, and how much. Secrets are shown once and kept only as a hash." actions=${create}>
    <${Problem} error=${keys.error} retry=${keys.reload} />
    ${!keys.data && !keys.error ? html`<${Skeleton} />` : null}
    ${keys.data && !shown.length ? html`<${Empty} title="No keys yet">Create one for each program or person that calls this cloud.<//>` : null}
    ${shown.length ? html`<ul class="cards">${shown.map((key) => html`<${KeyCard} key=${key.id} item=${key} mine=${key.id === me.key.id} open=${setOpen} />`)}</ul>` : null}
    ${open?.kind === "create" ? html`<${Create} onClose=${close} onDone=${(made) => done({ kind: "secret", made })} />` : null}
    ${open?.kind === "secret" ? html`<${Secret} made=${open.made} onClose=${close} />` : null}
    ${open?.kind === "edit" ? html`<${Edit} item=${open.item} onClose=${close} onDone=${() => done()} />` : null}
    ${open?.kind === "revoke" ? html`<${Revoke} item=${open.item} onClose=${close} onDone=${() => done()} />` : null}
  <//>`;
}

const expired = (key) => key.expires_at !== null && key.expires_at * 1000 < Date.now();
const usable = (key) => Number(key.revoked_at === null && !expired(key));

function KeyCard({ item, mine, open }) {
  const { limits } = item;
  const rate = [
    limits.requests_per_minute === null ? null : `${count(limits.requests_per_minute)} requests/min`,
    limits.tokens_per_minute === null ? null : `${count(limits.tokens_per_minute)} tokens/min`,
  ].filter(Boolean);
  const life = item.revoked_at !== null ? `revoked ${date(item.revoked_at)}`
    : item.expires_at !== null ? `${expired(item) ? "expired" : "expires"} ${date(item.expires_at)}` : "does not expire";
  return html`<li class=${usable(item) ? "card" : "card off"}>
    <div class="card-title"><h2>${item.name}</h2><span class=${`tag ${item.role}`}>${item.role}</span>${mine ? html`<span class="tag">this session</span>` : null}
      <code>${item.hint}</code></div>
    <p class="faint">created ${date(item.created_at)}, ${life}</p>
    <div class="card-facts"><${Budget} spent=${item.spent_this_month} budget=${limits.budget_per_month} />
      <p>${rate.length ? rate.join(", ") : "No rate limit"}</p></div>
    ${usable(item) ? html`<div class="actions">
      <button class="quiet" onClick=${() => open({ kind: "edit", item })} aria-label=${`Edit limits of ${item.name}`}>Edit limits</button>
      ${mine ? null : html`<button class="quiet danger" onClick=${() => open({ kind: "revoke", item })} aria-label=${`Revoke ${item.name}`}>Revoke</button>`}</div>` : null}
  </li>`;
}

export function Budget({ spent, budget }) {
  if (budget === null) return html`<p><strong>${money(spent)}</strong> this month, no budget set</p>`;
  const part = budget ? Math.min(1, spent / budget) : 1;
  return html`<div class="budget"><p><strong>${money(spent)}</strong> of ${money(budget)} this month</p>
    <progress class=${part > 0.9 ? "hot" : ""} max="1" value=${part} aria-label="Budget used"></progress></div>`;
}

function useForm(submit) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const run = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await submit();
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return { busy, error, run };
}

const asNumbers = (typed) => Object.fromEntries(LIMITS.map(([name]) => [name, typed[name] === "" ? null : Number(typed[name])]));

function LimitFields({ value, onChange, error }) {
  return LIMITS.map(([name, label, step]) => html`<${Field} key=${name} label=${label} error=${error?.param?.endsWith(name) ? error.message : null}>
    <input type="number" name=${name} min="0" step=${step} placeholder="no limit" value=${value[name]}
      onInput=${(e) => onChange({ ...value, [name]: e.target.value })} /><//>`);
}

function Create({ onClose, onDone }) {
  const [name, setName] = useState("");
  const [role, setRole] = useState("user");
  const [life, setLife] = useState("");
  const [limits, setLimits] = useState(Object.fromEntries(LIMITS.map(([key]) => [key, ""])));
  const form = useForm(async () => {
    const body = { name: name.trim(), role, limits: asNumbers(limits) };
    if (life) body.expires_in_s = Number(life);
    onDone(await send("POST", "/atoll/v1/keys", body));
  });
  return html`<${Dialog} title="Create key" onClose=${onClose}><form onSubmit=${form.run}>
    <${Field} label="Name" hint="Which program or person uses it."><input name="name" required maxlength="100" autocomplete="off" autofocus
      value=${name} onInput=${(e) => setName(e.target.value)} /><//>
    <div class="field"><span>Role</span><${Choice} label="Role" value=${role} onChange=${setRole} options=${[["user", "user"], ["admin", "admin"]]} />
      <small>${role === "admin" ? "May also manage keys and models, and see everyone's requests." : "May call models and see its own requests."}</small></div>
    <div class="columns"><${LimitFields} value=${limits} onChange=${setLimits} error=${form.error} /></div>
    <${Field} label="Expires"><select value=${life} onChange=${(e) => setLife(e.target.value)}>
      ${LIVES.map(([seconds, text]) => html`<option key=${seconds} value=${seconds}>${text}</option>`)}</select><//>
    <${Problem} error=${form.error} />
    <footer><button type="button" class="quiet" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>Create</button></footer>
  </form><//>`;
}

function Secret({ made, onClose }) {
  return html`<${Dialog} title=${`Key for ${made.name}`} onClose=${onClose}>
    <p>Copy the secret now. It is shown this once and cannot be recovered.</p>
    <output class="secret" data-testid="secret">${made.secret}</output>
    <footer><${Copy} text=${made.secret} label="Copy secret" /><button class="primary" onClick=${onClose}>I have saved it</button></footer><//>`;
}

function Edit({ item, onClose, onDone }) {
  const [limits, setLimits] = useState(Object.fromEntries(LIMITS.map(([key]) => [key, item.limits[key] ?? ""])));
  const form = useForm(async () => onDone(await send("PATCH", `/atoll/v1/keys/${item.id}`, { limits: asNumbers(limits) })));
  return html`<${Dialog} title=${`Limits of ${item.name}`} onClose=${onClose}><form onSubmit=${form.run}>
    <p class="faint">Empty means no limit. A change holds from the next request on.</p>
    <${LimitFields} value=${limits} onChange=${setLimits} error=${form.error} />
    <${Problem} error=${form.error} />
    <footer><button type="button" class="quiet" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>Save</button></footer>
  </form><//>`;
}

function Revoke({ item, onClose, onDone }) {
  const form = useForm(async () => onDone(await send("DELETE", `/atoll/v1/keys/${item.id}`)));
  return html`<${Dialog} title=${`Revoke ${item.name}?`} onClose=${onClose}><form onSubmit=${form.run}>
    <p>Programs that use <code>${item.hint}</code> are refused from now on. This cannot be undone; its history stays.</p>
    <${Problem} error=${form.error} />
    <footer><button type="button" class="quiet" autofocus onClick=${onClose}>Keep it</button><button class="primary danger" disabled=${form.busy}>Revoke</button></footer>
  </form><//>`;
}
