import { html } from "/console/vendor/preact-htm.js";
import { get } from "/console/api.js";
import { count, date, clock, span } from "/console/format.js";
import { Copy, Page, Problem, Ring, Skeleton, useLoad } from "/console/ui.js";

export function StatusPage() {
  const status = useLoad((signal) => get("/atoll/v1/status", { signal }), [], 5000);
  const data = status.data;
  const ready = data?.models.filter((m) => m.state === "ready").length;
  return html`<${Page} title="Status" note="This installation, every five seconds.">
    <${Problem} error=${status.error} retry=${status.reload} />
    ${!data && !status.error ? html`<${Skeleton} />` : null}
    ${data ? html`
      <dl class="totals">
        <div><dt>Version</dt><dd>${data.version}</dd><small>store: ${data.store}</small></div>
        <div><dt>Up for</dt><dd>${span(data.uptime_s)}</dd><small>since ${date(data.started_at)} ${clock(data.started_at)}</small></div>
        <div><dt>Models ready</dt><dd>${ready} of ${data.models.length}</dd><small>${ready === data.models.length ? "all of them" : "the rest is listed below"}</small></div>
        <div><dt>Requests running</dt><dd>${count(data.running)}</dd><small>at this moment</small></div></dl>
      <h2 class="section">Models</h2>
      <ul class="cards tight">${data.models.map((m) => html`<li class="card" key=${m.id}><div class="card-title"><h3>${m.id}</h3><${Ring} state=${m.state} /></div>
        <p class="faint">${m.task}</p>${m.detail ? html`<p class="problem">${m.detail}</p>` : null}<${Endpoints} list=${m.endpoints ?? []} /></li>`)}</ul>
      <h2 class="section">Call it from anywhere on this machine</h2>
      <${Curl} />` : null}
  <//>`;
}

function Endpoints({ list }) {
  const known = list.filter((e) => typeof e === "object");
  if (!known.length) return list.length ? html`<p class="faint">at <code>${list.join(", ")}</code></p>` : null;
  return html`<div class="scroll"><table><caption class="hidden">Endpoints</caption><thead><tr><th>Endpoint</th><th>Region</th><th class="n">Busy</th><th>Health</th></tr></thead>
    <tbody>${known.map((e) => html`<tr key=${e.name}><th scope="row">${e.name}</th><td>${e.region}</td><td class="n">${e.outstanding} of ${e.limit}</td>
      <td><${Ring} state=${e.healthy ? "ready" : "failed"} label=${e.healthy ? "healthy" : "unhealthy"} /></td></tr>`)}</tbody></table></div>`;
}

function Curl() {
  const text = `curl ${location.origin}/v1/chat/completions -H "Authorization: Bearer $ATOLL_KEY" -H "Content-Type: application/json" -d '{"model":"max","messages":[{"role":"user","content":"Hello"}]}'`;
  return html`<div class="snippet"><pre tabindex="0"><code>${text}</code></pre><${Copy} text=${text} /></div>`;
}
