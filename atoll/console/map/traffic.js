/** What flows through the cloud: arcs for the map, rates for the figures, the newest requests for the list. */

import { useEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { ApiError, get } from "/console/api.js";
import { follow, steps } from "/console/feed.js";

const WINDOW_S = 60;
const LATEST = 12;
const MOST_OPEN = 500;
const SHOW_MS = 500;
const ASK_MS = 350;
const ASK_AFTER_MS = 700;
const ROUTED = /chat|messages|responses|completions/;

/** Requests as they come and go; plain state, told of by `useTraffic`. */
class Traffic {
  constructor() {
    this.open = new Map();
    this.asked = new Map();
    this.done = [];
    this.latest = [];
    this.changed = true;
  }

  take(row) {
    this.changed = true;
    if (row.status === "open") {
      if (this.open.size < MOST_OPEN) this.open.set(row.id, { row, since: performance.now() });
    } else {
      this.open.delete(row.id);
      this.asked.delete(row.id);
      this.done.push({ row, at: Date.now() / 1000 });
    }
    const others = this.latest.filter((r) => r.id !== row.id);
    this.latest = [row, ...others].sort((a, b) => b.created_at - a.created_at).slice(0, LATEST);
  }

  /** A request that has run for a while and was not asked about lately: where is it? */
  next(now) {
    const [id] = [...this.open.entries()]
      .filter(([, { row, since }]) => now - since > ASK_AFTER_MS && ROUTED.test(row.route))
      .map(([id]) => id).sort((a, b) => (this.asked.get(a) ?? 0) - (this.asked.get(b) ?? 0));
    return id;
  }

  /** -> {latest, minute: rows that ended in the last minute} */
  told() {
    const since = Date.now() / 1000 - WINDOW_S;
    this.done = this.done.filter((d) => d.at > since);
    return { latest: this.latest, minute: this.done.map((d) => d.row) };
  }
}

/** `onLeg(row, legs)` hears where a request is: `legs` are [{region, kind}], the last one where it is now.
 * -> {latest, minute, live, error} */
export function useTraffic(onLeg) {
  const [state, setState] = useState({ latest: null, minute: [] });
  const [live, setLive] = useState(false);
  const [error, setError] = useState(null);
  const tell = useRef(onLeg);
  tell.current = onLeg;
  useEffect(() => {
    const traffic = new Traffic();
    const control = new AbortController();
    follow(control.signal, {
      first: ({ data }) => first(traffic, data),
      row: (row) => {
        traffic.take(row);
        if (row.status !== "open") tell.current(row, legs(row));
      },
      live: setLive,
      error: setError,
    });
    const show = setInterval(() => {
      if (!traffic.changed && !traffic.done.length) return;
      traffic.changed = false;
      setState(traffic.told());
    }, SHOW_MS);
    const ask = setInterval(() => locate(traffic, control.signal, tell), ASK_MS);
    return () => {
      control.abort();
      clearInterval(show);
      clearInterval(ask);
    };
  }, []);
  return { ...state, live, error };
}

/** What was there before; only what ended within the window counts for the rates. */
function first(traffic, rows) {
  const since = Date.now() / 1000 - WINDOW_S;
  const known = new Set(traffic.done.map((d) => d.row.id));
  traffic.open.clear();
  for (const row of [...rows].reverse()) {
    const at = row.created_at + (row.duration_ms ?? 0) / 1000;
    if (row.status !== "open" && (at < since || known.has(row.id))) {
      traffic.latest = [row, ...traffic.latest.filter((r) => r.id !== row.id)].slice(0, LATEST);
    } else traffic.take(row);
  }
  traffic.changed = true;
}

/** The ledger names the region of a request when it ends; until then the decision about it does. */
async function locate(traffic, signal, tell) {
  const id = traffic.next(performance.now());
  if (!id) return;
  traffic.asked.set(id, performance.now());
  try {
    const { decisions } = await get(`/atoll/v1/requests/${encodeURIComponent(id)}/route`, { signal });
    const row = traffic.open.get(id)?.row;
    if (row) tell.current(row, running(decisions));
  } catch (problem) {
    if (signal.aborted) return;
    if (!(problem instanceof ApiError)) throw problem;
    traffic.asked.set(id, Infinity);
  }
}

function running(decisions) {
  const regions = decisions.map((d) => d.region).filter((region, i, all) => region && region !== all[i - 1]);
  return regions.map((region, i) => ({ region, kind: i ? "moved" : "run" }));
}

function legs(row) {
  const made = steps(row);
  const failed = row.status !== "done" && row.status !== "cancelled";
  return made.map(({ region }, i) => ({ region, kind: i < made.length - 1 ? "broken" : failed ? "failed" : i ? "moved" : "run" }));
}

/** The rates of the last minute: {perMinute, tokens, costPerHour, byRegion}. `tokens` output per second. */
export function rates(minute) {
  const byRegion = new Map();
  for (const row of minute) {
    for (const { region, tokens } of steps(row)) {
      const sum = byRegion.get(region) ?? { requests: 0, tokens: 0, cost: 0 };
      const share = row.output ? tokens / row.output : 1;
      byRegion.set(region, { requests: sum.requests + 1, tokens: sum.tokens + tokens, cost: sum.cost + row.cost * share });
    }
  }
  const total = (name) => minute.reduce((sum, row) => sum + row[name], 0);
  return { perMinute: minute.length, tokens: total("output") / WINDOW_S, costPerHour: total("cost") * (3600 / WINDOW_S), byRegion };
}
