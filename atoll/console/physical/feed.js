/** Runs as they go on: rows and figures, followed over the API for as long as somebody looks. */

import { useEffect, useState } from "/console/vendor/preact-htm.js";
import { ApiError, call, events } from "/console/api.js";

const PAUSE = 2000;

export const path = (id) => `/atoll/v1/runs/${encodeURIComponent(id)}`;
export const underWay = (row) => row.state === "queued" || row.state === "running";

/** Follow the runs `ids`. -> Map of id to {row, lines: {step: [line]}, error} */
export function useRuns(ids) {
  const [found, setFound] = useState(new Map());
  const [turn, setTurn] = useState(0);
  const key = ids.join(" ");
  useEffect(() => {
    const control = new AbortController();
    const put = (id, change) => setFound((before) => {
      if (control.signal.aborted) return before;
      const next = new Map([...before].filter(([known]) => ids.includes(known)));
      return next.set(id, change(next.get(id) ?? { row: null, lines: {}, error: null }));
    });
    for (const id of ids) followed(id, control.signal, put);
    return () => control.abort();
  }, [key, turn]);
  return { found, again: () => setTurn((n) => n + 1) };
}

async function followed(id, signal, put) {
  while (!signal.aborted) {
    put(id, (run) => ({ ...run, lines: {} }));
    try {
      for await (const { event, data } of events(await call(`${path(id)}/events`, { signal }))) {
        if (event === "run") put(id, (run) => ({ ...run, row: data, error: null }));
        if (event === "figures") put(id, (run) => ({ ...run, lines: added(run.lines, data) }));
        if (event === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      put(id, (run) => ({ ...run, error }));
      if (error.status === 404 || error.status === 403) return;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

/** A step that was interrupted tells some of its way again: what it tells last holds. */
function added(lines, told) {
  const next = { ...lines };
  for (const line of told) {
    let own = next[line.step] === lines[line.step] ? [...(lines[line.step] ?? [])] : next[line.step];
    while (own.length && own.at(-1).done >= line.done) own.pop();
    own.push(line);
    next[line.step] = own;
  }
  return next;
}

/** Names of the figures that any of `lines` has. */
export const figuresOf = (lines) => bySpeed([...new Set(lines.flatMap((line) => Object.keys(line.figures)))]);

/** Names of figures, those of speed last. */
export const bySpeed = (names) => names.sort((a, b) => Number(a.endsWith("_per_second")) - Number(b.endsWith("_per_second")));

export const curve = (lines, figure) => lines.filter((line) => figure in line.figures).map((line) => [line.done, line.figures[figure]]);
