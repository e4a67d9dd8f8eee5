/** Policies in service: the version that is promoted, those before, going back to the one before, stopping. */

import { html, useState } from "/console/vendor/preact-htm.js";
import { send } from "/console/api.js";
import { ago, count } from "/console/format.js";
import { Copy, Dialog, Empty, Field, Problem, Ring, Skeleton } from "/console/ui.js";

const RINGS = { ready: "ready", stopped: "failed", failed: "failed", missing: "missing" };

export function Policies({ policies, onArtifact }) {
  const [error, setError] = useState(null);
  const [releasing, setReleasing] = useState(null);
  const [token, setToken] = useState(null);
  const act = async (name, action, body) => {
    setError(null);
    try {
      const told = await send("POST", `/atoll/v1/policies/${encodeURIComponent(name)}/${action}`, body);
      if (action === "stop") setToken({ name, token: told.token });
    } catch (problem) {
      setError(problem);
    }
    policies.reload();
  };
  if (policies.error) return html`<${Problem} error=${policies.error} retry=${policies.reload} />`;
  if (!policies.data) return html`<${Skeleton} />`;
  return html`<${Problem} error=${error} />
    ${policies.data.length ? html`<ul class="cards">${policies.data.map((p) => html`<${Policy} key=${p.id} policy=${p} act=${act} onArtifact=${onArtifact} onRelease=${() => setReleasing(p.id)} />`)}</ul>`
      : html`<${Empty} title="No policy in service">A policy that passed the gate can be promoted from its report.<//>`}
    ${token ? html`<${Dialog} title=${`${token.name} is stopped`} onClose=${() => setToken(null)}>
      <p>It answers with its safe action only, until this token releases it. The token is shown this once.</p><output class="secret">${token.token}</output>
      <footer><${Copy} text=${token.token} label="Copy token" /><button class="primary" onClick=${() => setToken(null)}>I have saved it</button></footer><//>` : null}
    ${releasing ? html`<${Release} name=${releasing} onClose=${() => setReleasing(null)} onDone=${() => { setReleasing(null); policies.reload(); }} />` : null}`;
}

function Policy({ policy, act, onArtifact, onRelease }) {
  const { id, state, detail, promoted, past, stop, sessions, answered, manifest } = policy;
  return html`<li class="card"><div class="card-title"><h2>${id}</h2><${Ring} state=${RINGS[state]} label=${state} /></div>
    ${detail ? html`<p class="problem">${detail}</p>` : null}
    ${stop ? html`<p class="problem">Stopped by ${stop.by}${stop.reason ? `: ${stop.reason}` : ""}, ${ago(stop.at)}</p>` : null}
    ${promoted ? html`<p>version <button class="link" onClick=${() => onArtifact(promoted.policy)}><code>${promoted.policy.slice(0, 12)}</code></button>,
      promoted ${ago(promoted.at)} with <button class="link" onClick=${() => onArtifact(promoted.report)}>its gate report</button></p>` : null}
    <${Lineage} of=${manifest?.lineage} onArtifact=${onArtifact} />
    <p class="faint">${[manifest ? `${manifest.task}, ${manifest.kind}, ${manifest.rate_hz} Hz` : null, `${count(sessions)} sessions`, `${count(answered)} observations answered`, `${past.length} versions before`].filter(Boolean).join(" · ")}</p>
    <div class="actions">${past.length ? html`<button class="quiet" onClick=${() => act(id, "rollback")}>Roll back to ${past.at(-1).policy.slice(0, 12)}</button>` : null}
      ${stop ? html`<button class="quiet" onClick=${onRelease}>Release</button>` : html`<button class="quiet danger" onClick=${() => act(id, "stop", { reason: "from the console" })}>Emergency stop</button>`}</div></li>`;
}

function Lineage({ of, onArtifact }) {
  const parents = Object.entries(of ?? {});
  return parents.length ? html`<p>learned from ${parents.map(([role, digest], i) => html`${i ? ", " : ""}${role} <button class="link" onClick=${() => onArtifact(digest)}><code>${digest.slice(0, 12)}</code></button>`)}</p>` : null;
}

function Release({ name, onClose, onDone }) {
  const [token, setToken] = useState("");
  const [error, setError] = useState(null);
  const submit = async (event) => {
    event.preventDefault();
    try {
      await send("POST", `/atoll/v1/policies/${encodeURIComponent(name)}/reset`, { token });
      onDone();
    } catch (problem) {
      setError(problem);
    }
  };
  return html`<${Dialog} title=${`Release ${name}`} onClose=${onClose}><form onSubmit=${submit}>
    <${Field} label="Token that the stop gave"><input name="token" required autocomplete="off" value=${token} onInput=${(e) => setToken(e.target.value)} /><//>
    <${Problem} error=${error} />
    <footer><button type="button" class="quiet" onClick=${onClose}>Cancel</button><button class="primary">Release</button></footer></form><//>`;
}
