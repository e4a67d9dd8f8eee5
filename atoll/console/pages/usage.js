import { html, useMemo, useState } from "/console/vendor/preact-htm.js";
import { get } from "/console/api.js";
import { Bars } from "/console/chart.js";
import { count, money, short } from "/console/format.js";
import { Choice, Empty, Page, Problem, Skeleton, useLoad } from "/console/ui.js";
import { Budget } from "/console/pages/keys.js";

const HOUR = 3600;
const DAY = 24 * HOUR;
const SPANS = {
  day: { label: "24 hours", step: HOUR, steps: 24 },
  week: { label: "7 days", step: DAY, steps: 7 },
  month: { label: "30 days", step: DAY, steps: 30 },
};
const MEASURES = {
  cost: { label: "Cost", of: (row) => row.cost, show: money },
  tokens: { label: "Units", of: (row) => row.input + row.output, show: short },
  requests: { label: "Requests", of: (row) => row.requests, show: short },
};
const SERIES = 6;

export function UsagePage({ admin, me }) {
  const [span, setSpan] = useState("day");
  const [measure, setMeasure] = useState("requests");
  const [group, setGroup] = useState("model");
  const { step, steps } = SPANS[span];
  const usage = useLoad(async (signal) => {
    const until = Math.ceil(Date.now() / 1000 / step) * step;
    const since = until - steps * step;
    const [found, keys, own] = await Promise.all([
      get(`/atoll/v1/usage?since=${since}&until=${until}&step=${step}`, { signal }),
      admin ? get("/atoll/v1/keys", { signal }) : { data: [me.key] },
      get("/atoll/v1/me", { signal }),
    ]);
    return { rows: found.data, since, step, names: Object.fromEntries(keys.data.map((k) => [k.id, k.name])), month: own.month };
  }, [span], 30000);
  const data = usage.data?.step === step ? usage.data : null;
  const table = useMemo(() => (data ? pivot(data, steps, group, MEASURES[measure]) : null), [data, group, measure]);

  return html`<${Page} title="Usage" note=${admin ? "All keys of this cloud; times are UTC days and hours." : "What this key has used."}>
    <div class="filters">
      <${Choice} label="Time span" value=${span} onChange=${setSpan} options=${Object.entries(SPANS).map(([id, s]) => [id, s.label])} />
      <${Choice} label="Measure" value=${measure} onChange=${setMeasure} options=${Object.entries(MEASURES).map(([id, m]) => [id, m.label])} />
      <${Choice} label="Grouped by" value=${group} onChange=${setGroup} options=${[["model", "by model"], ["key", "by key"]]} /></div>
    <${Problem} error=${usage.error} retry=${usage.reload} />
    ${!data && !usage.error ? html`<${Skeleton} />` : null}
    ${data ? html`<${Totals} rows=${data.rows} month=${admin ? null : data.month} />` : null}
    ${data && !data.rows.length ? html`<${Empty} title="Nothing used in this time">Send a message in <a href="#/chat">Chat</a>, or call the API with a key, and it shows here within seconds.<//>` : null}
    ${table?.series.length ? html`<${Bars} label=${`${MEASURES[measure].label} ${group === "model" ? "by model" : "by key"}`} ...${table} step=${step} show=${MEASURES[measure].show} whole=${measure !== "cost"} />
      <${Breakdown} rows=${data.rows} names=${data.names} group=${group} />` : null}
  <//>`;
}

const nameOf = (row, group, names) => (group === "model" ? row.model : names[row.key_id] ?? row.key_id);

/** Rows into stacked series: {times, series: [{name, values}]}; small series are merged into "others". */
export function pivot({ rows, since, step, names }, steps, group, measure) {
  const times = Array.from({ length: steps }, (_, i) => since + i * step);
  const sums = new Map();
  for (const row of rows) {
    const at = Math.floor((row.start - since) / step);
    if (at < 0 || at >= steps) continue;
    const name = nameOf(row, group, names);
    if (!sums.has(name)) sums.set(name, new Array(steps).fill(0));
    sums.get(name)[at] += measure.of(row);
  }
  const total = (values) => values.reduce((a, b) => a + b, 0);
  const series = [...sums].map(([name, values]) => ({ name, values })).sort((a, b) => total(b.values) - total(a.values));
  if (series.length > SERIES) {
    const rest = series.splice(SERIES - 1);
    series.push({ name: "others", values: times.map((_, i) => total(rest.map((s) => s.values[i]))) });
  }
  return { times, series };
}

const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);

function Totals({ rows, month }) {
  const failed = sum(rows, "failed");
  return html`<dl class="totals">
    <div><dt>Requests</dt><dd>${count(sum(rows, "requests"))}</dd><small>${failed ? `${count(failed)} failed` : "none failed"}</small></div>
    <div><dt>Units in</dt><dd>${short(sum(rows, "input"))}</dd><small>${short(sum(rows, "cached"))} from cache</small></div>
    <div><dt>Units out</dt><dd>${short(sum(rows, "output"))}</dd><small>tokens, seconds, characters</small></div>
    <div><dt>Cost</dt><dd>${money(sum(rows, "cost"))}</dd>${month ? html`<${Budget} spent=${month.spent} budget=${month.budget} />` : html`<small>all keys</small>`}</div></dl>`;
}

function Breakdown({ rows, names, group }) {
  const groups = Object.entries(Object.groupBy(rows, (row) => nameOf(row, group, names)));
  const sorted = groups.sort((a, b) => sum(b[1], "cost") - sum(a[1], "cost") || sum(b[1], "requests") - sum(a[1], "requests"));
  return html`<div class="scroll"><table><caption class="hidden">Usage ${group === "model" ? "by model" : "by key"}</caption>
    <thead><tr><th>${group === "model" ? "Model" : "Key"}</th><th class="n">Requests</th><th class="n">Failed</th><th class="n">In</th><th class="n">Out</th><th class="n">Cost</th></tr></thead>
    <tbody>${sorted.map(([name, own]) => html`<tr key=${name}><th scope="row">${name}</th><td class="n">${count(sum(own, "requests"))}</td>
      <td class="n">${count(sum(own, "failed"))}</td><td class="n">${count(sum(own, "input"))}</td><td class="n">${count(sum(own, "output"))}</td>
      <td class="n">${money(sum(own, "cost"))}</td></tr>`)}</tbody></table></div>`;
}
