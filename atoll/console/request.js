/** One request in full: its facts, why it went where it did, and its signed receipt. */

import { html } from "/console/vendor/preact-htm.js";
import { get } from "/console/api.js";
import { Decisions } from "/console/explain.js";
import { steps } from "/console/feed.js";
import { clock, count, date, milliseconds, money } from "/console/format.js";
import { signed } from "/console/receipt.js";
import { Copy, Dialog, Problem, Ring, Skeleton, useLoad } from "/console/ui.js";

const LOOK = { open: "starting", done: "ready", failed: "failed", cancelled: "missing", interrupted: "failed" };
export const BAD = ["failed", "cancelled", "interrupted"];
export const status = (row) => html`<${Ring} state=${LOOK[row.status]} label=${row.status === "open" ? "running" : row.status} />`;

/** How a broken stream went on, in words. */
export function continued(grade) {
  const ways = {
    exact: "verified token by token",
    "exact-text": "verified by its text",
    fast: "equal in distribution",
    hot: "by a standby, without a stall",
    "hot-text": "by a standby, without a stall, verified by its text",
    restart: "begun anew with other weights",
  };
  return grade.split(">").map((way) => `${way}${ways[way] ? ` (${ways[way]})` : ""}`).join(", then ");
}

export function Path({ row }) {
  const made = steps(row);
  if (!made.length) return "–";
  return html`<span class="path">${made.map((step, i) => html`${i ? html` <i aria-hidden="true">→</i><span class="hidden"> then </span> ` : null}<span>${step.region}${made.length > 1 ? html` <small>${count(step.tokens)}</small>` : null}</span>`)}</span>`;
}

export function RequestDetail({ row, unit, onClose }) {
  const facts = [
    ["Request", html`<code>${row.id}</code>`],
    ["Status", html`<span class="state-line">${status(row)}${row.http_status ? html`<span>HTTP ${row.http_status}</span>` : null}</span>`],
    ["Error", row.error && html`<code>${row.error}</code>`],
    ["Began", `${date(row.created_at)} ${clock(row.created_at)}`],
    ["Key", html`<code>${row.key_id}</code>`],
    ["Model", row.model],
    ["API", row.route],
    ["Made in", row.region && html`<${Path} row=${row} />`],
    ["Continued", row.grade && continued(row.grade)],
    ["Rule", row.rule && html`<code>${row.rule.split(/(?<=[, ])/).map((name) => html`<span class="whole-name">${name}</span><wbr />`)}</code>`],
    ["Stored in", row.stored_in],
    ["Input", `${count(row.input)} ${unit(row)}s, ${count(row.cached)} from cache`],
    ["Output", count(row.output)],
    ["First token", milliseconds(row.first_token_ms)],
    ["Whole", milliseconds(row.duration_ms)],
    ["Cost", money(row.cost)],
  ];
  return html`<${Dialog} title="Request" wide onClose=${onClose}><div class="whole">
    <dl class="detail">${facts.filter(([, value]) => value).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <${Why} id=${row.id} ended=${row.status !== "open"} />
    ${row.status === "open" ? null : html`<${Receipt} id=${row.id} />`}</div>
    <footer><button class="primary" onClick=${onClose}>Close</button></footer><//>`;
}

function Why({ id, ended }) {
  const found = useLoad((signal) => get(`/atoll/v1/requests/${encodeURIComponent(id)}/route`, { signal }), [id, ended]);
  const gone = found.error?.status === 404;
  return html`<section class="why"><h3>Why it went there</h3>
    ${gone ? html`<p class="faint">Nothing is kept about it: it was not routed, or more than 1,000 requests came after it.</p>` : html`<${Problem} error=${found.error} retry=${found.reload} />`}
    ${!found.data && !found.error ? html`<${Skeleton} rows=${2} />` : null}
    ${found.data ? html`<${Decisions} decisions=${found.data.decisions} />` : null}</section>`;
}

function Receipt({ id }) {
  const found = useLoad(async (signal) => {
    const [receipt, key] = await Promise.all([get(`/atoll/v1/requests/${encodeURIComponent(id)}/receipt`, { signal }), get("/atoll/v1/receipts/key", { signal })]);
    return { receipt, signed: await signed(receipt, key) };
  }, [id]);
  const SAYS = {
    true: ["ready", "The signature was checked in this page: it holds."],
    false: ["failed", "The signature does not hold: this receipt was altered."],
    null: ["missing", "Not checked here: this browser checks Ed25519 only over https or on localhost."],
  };
  const text = found.data ? JSON.stringify(found.data.receipt, null, 2) : "";
  const [look, says] = SAYS[found.data?.signed ?? null];
  return html`<section class="receipt"><h3>Receipt</h3><${Problem} error=${found.error} retry=${found.reload} />
    ${!found.data && !found.error ? html`<${Skeleton} rows=${1} />` : null}
    ${found.data ? html`<p class="verdict"><${Ring} state=${look} label=${says} /></p>
      <details><summary>The receipt as it was signed</summary><pre>${text}</pre><${Copy} text=${text} label="Copy receipt" /></details>` : null}</section>`;
}
