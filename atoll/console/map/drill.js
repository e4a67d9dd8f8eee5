/** Break a region while it answers, and watch the answer: does the text go on, where, and how long was it silent? */

import { html, useEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { ApiError, get, send } from "/console/api.js";
import { request, stream, throttle } from "/console/conversation.js";
import { steps } from "/console/feed.js";
import { count, milliseconds } from "/console/format.js";
import { continued, Path } from "/console/request.js";
import { Choice, Field, Problem } from "/console/ui.js";

const KINDS = [["kill", "Kill"], ["stall", "Stall"], ["slow", "Slow"], ["partition", "Partition"]];
const MEANS = {
  kill: "The region's listener dies and every stream of it is cut.",
  stall: "The region stops in the middle of what it does, and says nothing.",
  slow: "Each piece of an answer comes a quarter of a second late.",
  partition: "Nothing reaches the region, and nothing comes back.",
};
const GRADES = [["exact", "exact"], ["fast", "fast"], ["hot", "hot"]];
const PROMPT = "Tell a long story about a lighthouse keeper and the sea.";
const STRIKE_AFTER = 20;
const TURNS = 3;
const PATIENCE = 20;
const PLAIN = { system: "", temperature: "0", thinking: false };

export function DrillPanel({ region, places, models, onChange, onRequest }) {
  const talkers = models.filter((m) => m.task === "chat" && !m.tier && m.state === "ready");
  const [form, setForm] = useState({ kind: "kill", seconds: 8, grade: "exact", model: talkers[0]?.id ?? "", tokens: 200 });
  const [run, setRun] = useState(null);
  const [error, setError] = useState(null);
  const control = useRef(null);
  useEffect(() => () => control.current?.abort(), []);
  const model = talkers.find((m) => m.id === form.model) ?? talkers[0];
  const busy = run !== null && !run.done;
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });

  const submit = async (event) => {
    event.preventDefault();
    setError(null);
    setRun(null);
    control.current = new AbortController();
    try {
      await drill({ region: region.id, model, form, signal: control.current.signal, show: setRun, onChange });
    } catch (problem) {
      if (!(problem instanceof ApiError)) throw problem;
      setError(problem);
      setRun((before) => before && { ...before, done: true });
    }
  };
  return html`<section class="drill"><h3>Drill</h3>
    <p class="faint">A model answers from ${region.city}; after ${STRIKE_AFTER} pieces of text the region is broken. The same text should go on from another one.</p>
    ${model ? html`<form onSubmit=${submit}>
      <${Choice} label="Kind of drill" value=${form.kind} options=${KINDS} onChange=${(kind) => setForm({ ...form, kind })} /><p class="faint means">${MEANS[form.kind]}</p>
      <div class="pair"><${Field} label="For seconds"><input type="number" min="1" max="600" value=${form.seconds} onInput=${set("seconds")} /><//>
        <${Field} label="Goes on"><select value=${form.grade} onChange=${set("grade")}>${GRADES.map(([g, label]) => html`<option key=${g} value=${g} selected=${g === form.grade}>${label}</option>`)}</select><//>
        <${Field} label="Tokens"><input type="number" min="40" max=${model.max_output} value=${form.tokens} onInput=${set("tokens")} /><//></div>
      ${talkers.length > 1 ? html`<${Field} label="Model"><select value=${model.id} onChange=${set("model")}>${talkers.map((m) => html`<option key=${m.id} value=${m.id} selected=${m.id === model.id}>${m.title}</option>`)}</select><//>` : null}
      <div class="actions"><button class="primary danger" disabled=${busy || region.drill !== null}>Break ${region.city}</button>
        ${busy ? html`<button type="button" class="quiet" onClick=${() => control.current.abort()}>Stop</button>` : null}</div></form>`
    : html`<p class="faint">There is no chat model in service to answer meanwhile.</p>`}
    <${Problem} error=${error} />
    ${run ? html`<${Survivor} run=${run} region=${region} places=${places} onRequest=${onRequest} />` : null}</section>`;
}

/** The answer as it comes, with the moment of the drill in it, and what the page measured. */
function Survivor({ run, region, places, onRequest }) {
  const { reply, struckAt, struckText, times, row } = run;
  const place = useRef(null);
  useEffect(() => place.current.scrollIntoView({ block: "nearest" }), [run.done]);
  const name = (id) => places.find((p) => p.id === id)?.city ?? id;
  const cut = struckText ?? reply.text.length;
  const gaps = silences(times, struckAt);
  const phase = !reply.text ? (run.reason ? `Waiting: ${run.reason}.` : "Asking…") : struckAt === null ? `${region.city} answers.` : !run.done ? `${region.city} is broken; the answer is watched.` : row ? verdict(row, name) : "The answer is whole.";
  return html`<div class="survivor" ref=${place}><p role="status" class="phase">${run.error ? "The answer did not survive." : run.stopped ? "Stopped." : phase}</p>
    <${Ticks} times=${times} struckAt=${struckAt} done=${run.done} />
    ${reply.text ? html`<div class="survivor-text" tabindex="0" role="group" aria-label="The answer">${reply.text.slice(0, cut)}${struckText !== null ? html`<mark title="Here the region was broken">${region.city} broken</mark>` : null}<span class="after">${reply.text.slice(cut)}</span></div>` : null}
    <${Problem} error=${run.error} />
    <dl class="detail">
      ${gaps.usual !== null ? html`<div><dt>Between pieces</dt><dd>${milliseconds(gaps.usual)} on average</dd></div>` : null}
      ${struckAt !== null && gaps.longest !== null ? html`<div><dt>Longest silence</dt><dd><b data-testid="stall">${milliseconds(gaps.longest)}</b> after the drill</dd></div>` : null}
      ${row ? html`<div><dt>Path</dt><dd data-testid="path"><${Path} row=${row} /></dd></div>` : null}
      ${row?.grade ? html`<div><dt>Went on</dt><dd data-testid="grade">${continued(row.grade)}</dd></div>` : null}
      ${row ? html`<div><dt>Tokens</dt><dd>${count(row.output)}, one bill</dd></div>` : null}
      ${run.same !== undefined ? html`<div><dt>Compared</dt><dd data-testid="same">${run.same === null ? "asking again, unbroken…" : run.same ? "letter for letter the unbroken answer" : "differs from the unbroken answer"}</dd></div>` : null}</dl>
    ${row ? html`<div class="actions"><button class="quiet" onClick=${() => onRequest(row.id, row)}>Explain this request</button>
      ${run.same === undefined && !run.error ? html`<button class="quiet" onClick=${run.compare}>Compare with the unbroken answer</button>` : null}</div>` : null}</div>`;
}

function verdict(row, name) {
  const regions = steps(row).map(({ region }) => name(region));
  if (regions.length < 2) return "The answer is whole; it did not have to move.";
  return `The answer survived: ${regions.join(" → ")}.`;
}

/** One line for each piece of text, by the time it came: silence is a gap that can be seen. */
function Ticks({ times, struckAt, done }) {
  if (times.length < 2) return null;
  const whole = Math.max(times.at(-1) - times[0], done ? 1 : 4000);
  const x = (t) => (((t - times[0]) / whole) * 600).toFixed(1);
  const lines = (part) => part.map((t) => `M${x(t)} 4v14`).join("");
  const before = struckAt === null ? times : times.filter((t) => t <= struckAt);
  return html`<svg class="ticks" viewBox="-2 0 604 22" preserveAspectRatio="none" aria-hidden="true"><path d=${lines(before)} />
    ${struckAt === null ? null : html`<path class="after" d=${lines(times.filter((t) => t > struckAt))} /><path class="strike" d=${`M${x(struckAt)} 0v22`} />`}</svg>`;
}

/** -> {usual: average before the drill, longest: after it} in ms; null where too little came. */
export function silences(times, struckAt) {
  const gaps = times.slice(1).map((t, i) => [t, t - times[i]]);
  const before = gaps.filter(([t]) => struckAt === null || t <= struckAt).map(([, gap]) => gap);
  const after = gaps.filter(([t]) => struckAt !== null && t > struckAt).map(([, gap]) => gap);
  return { usual: before.length ? before.reduce((sum, gap) => sum + gap, 0) / before.length : null, longest: after.length ? Math.max(...after) : null };
}

/** Ask, break, watch. Asked anew, at most TURNS times, when load moved the answer elsewhere before it began. */
async function drill(wanted) {
  for (let turn = 1; turn <= TURNS; turn++) {
    const served = await attempt(wanted);
    if (served === null) return;
    if (served === wanted.region) throw new ApiError("The answer was over before the drill; ask for more tokens.");
  }
  throw new ApiError("The answer was made elsewhere each time, so that nothing was broken. Try again when there is less traffic.");
}

/** One answer. -> null when the drill is over, else the region that made the whole answer, with nothing broken. */
async function attempt({ region, model, form, signal, show, onChange }) {
  const run = { reply: { text: "", thinking: "", meta: { model } }, times: [], struckAt: null, struckText: null, row: null, done: false, error: null };
  const body = await steered(region, model, form, signal, (reason) => show({ ...run, reason }));
  if (body === null) {
    show({ ...run, stopped: true, done: true });
    return null;
  }
  const shown = throttle(() => show({ ...run }));
  let problem = null;
  const strike = () => {
    run.struckAt = performance.now();
    run.struckText = run.reply.text.length;
    send("POST", `/atoll/v1/regions/${encodeURIComponent(region)}/drill`, { kind: form.kind, seconds: Number(form.seconds) })
      .then(onChange, (error) => { problem = error; });
  };
  let length = 0;
  const piece = () => {
    const now = run.reply.text.length + run.reply.thinking.length;
    if (now > length) run.times.push(performance.now());
    length = now;
    if (run.struckAt === null && run.times.length >= STRIKE_AFTER && run.reply.meta.region === region) strike();
    shown();
  };
  show({ ...run });
  try {
    await stream(body, run.reply, piece, signal);
  } catch (error) {
    if (error.name === "AbortError") run.stopped = true;
    else if (error instanceof ApiError) run.error = error;
    else throw error;
  }
  const served = run.reply.meta.region;
  if (!signal.aborted && run.reply.meta.request) run.row = await ended(run.reply.meta.request, signal);
  run.done = true;
  run.compare = () => compare(body, run, signal, () => show({ ...run }));
  show({ ...run });
  if (problem) throw problem;
  return run.struckAt === null && !run.error && !run.stopped ? served : null;
}

/**
 * The request, under a rule that leaves this region and those that score worse: so it begins here, and can go on there.
 * A region that is left out for the moment (full, too slow) is waited for. One that scores worst may be judged by a
 * busier time, and waiting would not change that: a question of one token does. -> null when it was stopped meanwhile.
 */
async function steered(region, model, form, signal, wait) {
  const body = asked(model, form.tokens);
  for (let turn = 1; !signal.aborted; turn++) {
    const { decisions: [{ candidates }] } = await send("POST", "/atoll/v1/route/explain", { model: model.id, prompt_tokens: 40, max_tokens: Number(form.tokens) });
    const own = candidates.find((c) => c.region === region);
    if (!own) throw new ApiError(`${model.title} is not served in ${region}.`);
    const worse = candidates.filter((c) => c.score !== null && c.score > own.score && c.region !== region).map((c) => c.region);
    if (own.score !== null && worse.length) return { ...body, recovery: form.grade, residency: { process_in: [region, ...worse] } };
    const reason = own.score === null ? own.reason : "every other region scores better, so that no answer would begin here";
    if (turn === PATIENCE) throw new ApiError(`Nothing was broken: ${reason}.`);
    wait(reason);
    if (own.score !== null) await answered({ ...asked(model, 1), residency: { process_in: [region] } }, signal);
    else await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  return null;
}

function asked(model, maxTokens) {
  const body = request([{ role: "user", text: PROMPT }], { ...PLAIN, maxTokens }, model);
  return model.parameters.includes("seed") ? { ...body, seed: 1 } : body;
}

/** Ask, and forget what is said. Ends early, without an error, when it is stopped. */
async function answered(body, signal) {
  try {
    await stream(body, { text: "", thinking: "", meta: {} }, () => {}, signal);
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
}

/** The ledger's row of a request that has just ended; null if it does not come. */
async function ended(id, signal) {
  for (let turn = 0; turn < 15 && !signal.aborted; turn++) {
    const { data } = await get("/atoll/v1/requests?limit=100", { signal });
    const row = data.find((r) => r.id === id && r.status !== "open");
    if (row) return row;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  return null;
}

async function compare(body, run, signal, show) {
  run.same = null;
  show();
  const again = { text: "", thinking: "", meta: { model: run.reply.meta.model } };
  try {
    await stream(body, again, () => {}, signal);
    run.same = again.text === run.reply.text && again.thinking === run.reply.thinking;
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof ApiError)) throw error;
    run.same = undefined;
    if (error instanceof ApiError) run.error = error;
  }
  show();
}
