import { html, useEffect, useState } from "/console/vendor/preact-htm.js";
import { ApiError, call, events, get } from "/console/api.js";
import { ago, clock, count, date, milliseconds, money } from "/console/format.js";
import { Choice, Dialog, Empty, Page, Problem, Ring, Skeleton } from "/console/ui.js";

const PAGE = 50;
const MOST = 500;
const FILTERS = [["all", "All"], ["open", "Running"], ["done", "Done"], ["failed", "Failed"]];
const BAD = ["failed", "cancelled", "interrupted"];

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
    ${picked ? html`<${Detail} row=${feed.rows.find((r) => r.id === picked)} unit=${unit} onClose=${() => setPicked(null)} />` : null}
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

/** The newest requests, then each change as it is announced; reconnects with a growing pause. */
function useFeed() {
  const [state, setState] = useState({ rows: null, next: null });
  const [live, setLive] = useState(false);
  const [error, setError] = useState(null);
  const put = (found, next) => setState((before) => ({
    rows: merge(before.rows ?? [], found),
    next: next === undefined || before.rows?.length > found.length ? before.next : next,
  }));

  useEffect(() => {
    const control = new AbortController();
    const follow = async () => {
      const stream = await call("/atoll/v1/requests/live", { signal: control.signal });
      const first = await get(`/atoll/v1/requests?limit=${PAGE}`, { signal: control.signal });
      put(first.data, first.next);
      setLive(true);
      setError(null);
      for await (const { event, data } of events(stream)) if (event === "request") put([data]);
    };
    (async () => {
      for (let pause = 500; !control.signal.aborted; pause = Math.min(pause * 2, 10_000)) {
        try {
          await follow();
          pause = 500;
        } catch (problem) {
          if (control.signal.aborted) return;
          if (!(problem instanceof ApiError)) throw problem;
          setError(problem);
        }
        setLive(false);
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    })();
    return () => control.abort();
  }, []);

  const older = async () => {
    try {
      const found = await get(`/atoll/v1/requests?limit=${PAGE}&before=${state.next}`);
      setState((before) => ({ rows: merge(before.rows, found.data), next: found.next }));
    } catch (problem) {
      setError(problem);
    }
  };
  return { ...state, live, error, older };
}

function merge(rows, found) {
  const all = new Map(rows.map((r) => [r.id, r]));
  for (const row of found) if (row.status !== "open" || !all.has(row.id)) all.set(row.id, row);
  return [...all.values()].sort((a, b) => b.created_at - a.created_at).slice(0, MOST);
}

const LOOK = { open: "starting", done: "ready", failed: "failed", cancelled: "missing", interrupted: "failed" };
const status = (row) => html`<${Ring} state=${LOOK[row.status]} label=${row.status === "open" ? "running" : row.status} />`;
const surface = (route) => route.replace(/^\/(atoll\/)?v1\//, "");

function Table({ rows, unit, onPick }) {
  return html`<div class="scroll"><table class="requests"><caption class="hidden">Requests, newest first</caption>
    <thead><tr><th>Status</th><th>When</th><th>Model</th><th>API</th><th>Region</th><th class="n">In</th><th class="n">Out</th><th class="n">First</th><th class="n">Whole</th><th class="n">Cost</th></tr></thead>
    <tbody>${rows.map((r) => html`<tr key=${r.id} class=${r.status} data-id=${r.id}>
      <td>${status(r)}</td>
      <td data-label="When"><button class="link" onClick=${() => onPick(r.id)} aria-label=${`Details of the request at ${clock(r.created_at)}`}>${ago(r.created_at)}</button></td>
      <td data-label="Model">${r.model}</td><td data-label="API">${surface(r.route)}</td><td data-label="Region">${r.region || "–"}</td>
      <td class="n" data-label="In" title=${`${unit(r)}s`}>${count(r.input)}</td><td class="n" data-label="Out">${count(r.output)}</td>
      <td class="n" data-label="First">${milliseconds(r.first_token_ms)}</td><td class="n" data-label="Whole">${milliseconds(r.duration_ms)}</td>
      <td class="n" data-label="Cost">${money(r.cost)}</td></tr>`)}</tbody></table></div>`;
}

function Detail({ row, unit, onClose }) {
  const facts = [
    ["Request", html`<code>${row.id}</code>`],
    ["Status", html`${status(row)}${row.http_status ? ` HTTP ${row.http_status}` : ""}`],
    ["Error", row.error && html`<code>${row.error}</code>`],
    ["Began", `${date(row.created_at)} ${clock(row.created_at)}`],
    ["Key", html`<code>${row.key_id}</code>`],
    ["Model", row.model],
    ["API", row.route],
    ["Region", row.region],
    ["Input", `${count(row.input)} ${unit(row)}s, ${count(row.cached)} from cache`],
    ["Output", count(row.output)],
    ["First token", milliseconds(row.first_token_ms)],
    ["Whole", milliseconds(row.duration_ms)],
    ["Cost", money(row.cost)],
  ];
  return html`<${Dialog} title="Request" onClose=${onClose}>
    <dl class="detail">${facts.filter(([, value]) => value).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <footer><button class="primary" onClick=${onClose}>Close</button></footer><//>`;
}
