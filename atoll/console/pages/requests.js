import { html, useEffect, useState } from "/console/vendor/preact-htm.js";
import { useFeed } from "/console/feed.js";
import { ago, clock, count, milliseconds, money } from "/console/format.js";
import { BAD, Path, RequestDetail, status } from "/console/request.js";
import { Choice, Empty, Page, Problem, Ring, Skeleton } from "/console/ui.js";

const FILTERS = [["all", "All"], ["open", "Running"], ["done", "Done"], ["failed", "Failed"]];

export function RequestsPage({ admin, models }) {
  const feed = useFeed();
  const [filter, setFilter] = useState("all");
  const [picked, setPicked] = useState(null);
  useTick(5000);
  const shown = (feed.rows ?? []).filter((r) => filter === "all" || r.status === filter || (filter === "failed" && BAD.includes(r.status)));
  const unit = (r) => models.data?.find((m) => m.id === r.model)?.unit ?? "token";

  return html`<${Page} wide title="Requests" note=${admin ? "Every call to a model, as it happens." : "The calls of this key, as they happen."}
      actions=${html`<span role="status"><${Ring} state=${feed.live ? "ready" : "starting"} label=${feed.live ? "live" : "reconnecting"} /></span>`}>
    <div class="filters"><${Choice} label="Status" value=${filter} onChange=${setFilter} options=${FILTERS} /></div>
    <${Problem} error=${feed.error} />
    ${!feed.rows && !feed.error ? html`<${Skeleton} rows=${6} />` : null}
    ${feed.rows && !shown.length ? html`<${Empty} title=${filter === "all" ? "No requests yet" : "None of this kind"}>
      ${filter === "all" ? html`Say something in <a href="#/chat">Chat</a> in another tab: it appears here while it runs.` : "Choose another status above."}<//>` : null}
    ${shown.length ? html`<${Table} rows=${shown} unit=${unit} onPick=${setPicked} />` : null}
    ${feed.next ? html`<button class="quiet more" onClick=${feed.older}>Load older</button>` : null}
    ${picked ? html`<${RequestDetail} row=${feed.rows.find((r) => r.id === picked)} unit=${unit} onClose=${() => setPicked(null)} />` : null}
  <//>`;
}

/** Render again now and then, so that "5 s ago" stays true. */
function useTick(ms) {
  const [, setTurn] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setTurn((n) => n + 1), ms);
    return () => clearInterval(timer);
  }, []);
}

const surface = (route) => route.replace(/^\/(atoll\/)?v1\//, "");

function Table({ rows, unit, onPick }) {
  return html`<div class="scroll"><table class="requests"><caption class="hidden">Requests, newest first</caption>
    <thead><tr><th>Status</th><th>When</th><th>Model</th><th>API</th><th>Region</th><th class="n">In</th><th class="n">Out</th><th class="n">First</th><th class="n">Whole</th><th class="n">Cost</th></tr></thead>
    <tbody>${rows.map((r) => html`<tr key=${r.id} class=${r.status} data-id=${r.id}>
      <td>${status(r)}</td>
      <td data-label="When"><button class="link" onClick=${() => onPick(r.id)} aria-label=${`Details of the request at ${clock(r.created_at)}`}>${ago(r.created_at)}</button></td>
      <td data-label="Model">${r.model}</td><td data-label="API">${surface(r.route)}</td><td data-label="Region"><${Path} row=${r} /></td>
      <td class="n" data-label="In" title=${`${unit(r)}s`}>${count(r.input)}</td><td class="n" data-label="Out">${count(r.output)}</td>
      <td class="n" data-label="First">${milliseconds(r.first_token_ms)}</td><td class="n" data-label="Whole">${milliseconds(r.duration_ms)}</td>
      <td class="n" data-label="Cost">${money(r.cost)}</td></tr>`)}</tbody></table></div>`;
}
