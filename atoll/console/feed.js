/** Requests as they happen: the ledger's stream of rows that were opened and rows that ended. */

import { useEffect, useState } from "/console/vendor/preact-htm.js";
import { ApiError, call, events, get } from "/console/api.js";

const PAGE = 50;
const MOST = 500;

/** Follow the stream until `signal` aborts; reconnect with a growing pause. `on` = {first({data, next}), row, live, error}. */
export async function follow(signal, on) {
  for (let pause = 500; !signal.aborted; pause = Math.min(pause * 2, 10_000)) {
    try {
      const stream = await call("/atoll/v1/requests/live", { signal });
      on.first(await get(`/atoll/v1/requests?limit=${PAGE}`, { signal }));
      on.live(true);
      on.error(null);
      for await (const { event, data } of events(stream)) if (event === "request") on.row(data);
      pause = 500;
    } catch (problem) {
      if (signal.aborted) return;
      if (!(problem instanceof ApiError)) throw problem;
      on.error(problem);
    }
    on.live(false);
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

/** The newest requests, then each change as it is announced. -> {rows, next, live, error, older} */
export function useFeed() {
  const [state, setState] = useState({ rows: null, next: null });
  const [live, setLive] = useState(false);
  const [error, setError] = useState(null);
  const put = (found, next) => setState((before) => ({
    rows: merge(before.rows ?? [], found),
    next: next === undefined || before.rows?.length > found.length ? before.next : next,
  }));
  useEffect(() => {
    const control = new AbortController();
    follow(control.signal, { first: ({ data, next }) => put(data, next), row: (row) => put([row]), live: setLive, error: setError });
    return () => control.abort();
  }, []);

  const older = async () => {
    try {
      const found = await get(`/atoll/v1/requests?${new URLSearchParams({ limit: PAGE, ...state.next })}`);
      setState((before) => {
        const rows = merge(before.rows, found.data);
        return { rows, next: rows.length < MOST ? found.next : null };
      });
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

/** Where an answer was made: "c:0 a:120 b:80" -> [{region, tokens}], without those that were asked and made none. */
export function steps({ path, region }) {
  const asked = path ? path.split(" ").map((step) => {
    const at = step.lastIndexOf(":");
    return { region: step.slice(0, at), tokens: Number(step.slice(at + 1)) };
  }) : region ? [{ region, tokens: 0 }] : [];
  const made = asked.filter(({ tokens }) => tokens);
  return made.length ? made : asked.slice(-1);
}
