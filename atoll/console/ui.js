/** Components that several pages share. */

import { html, useEffect, useLayoutEffect, useRef, useState } from "/console/vendor/preact-htm.js";

/** `load(signal)` run now, again when `deps` change, and every `every` ms. -> {data, error, reload} */
export function useLoad(load, deps = [], every = 0) {
  const [state, setState] = useState({ data: null, error: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const control = new AbortController();
    let timer;
    const run = async () => {
      try {
        const data = await load(control.signal);
        if (!control.signal.aborted) setState({ data, error: null });
      } catch (error) {
        if (!control.signal.aborted) setState((before) => ({ ...before, error }));
      }
      if (every && !control.signal.aborted) timer = setTimeout(run, every);
    };
    run();
    return () => {
      control.abort();
      clearTimeout(timer);
    };
  }, [...deps, turn]);
  return { ...state, reload: () => setTurn((n) => n + 1) };
}

export function Logo({ size = 34 }) {
  return html`<svg class="logo" width=${size} height=${size} viewBox="0 0 32 32" aria-hidden="true">
    <circle class="lagoon" cx="16" cy="16" r="6.5" />
    <circle class="reef" cx="16" cy="16" r="11" />
  </svg>`;
}

/** The state of a thing as a ring: whole, turning, broken or faint. The word beside it carries the meaning. */
export function Ring({ state, label = state }) {
  return html`<span class="ring-label"><svg class="ring ring-${state}" viewBox="0 0 16 16" aria-hidden="true">
    <circle cx="8" cy="8" r="5.5" pathLength="100" /></svg>${label}</span>`;
}

export function Problem({ error, retry }) {
  if (!error) return null;
  const where = error.param ? html` <span class="param">field <code>${error.param}</code></span>` : null;
  const wait = error.retryAfter ? html` <span class="param">try again in ${error.retryAfter} s</span>` : null;
  return html`<div class="problem" role="alert"><p>${sentence(error.message)}${where}${wait}</p>
    ${retry ? html`<button class="quiet" onClick=${retry}>Try again</button>` : null}</div>`;
}

/** With a capital, unless it begins with the name of a field. */
export const sentence = (text) => text.replace(/^[a-z]+(?=[ ,:;])/, (word) => word[0].toUpperCase() + word.slice(1));

export function Empty({ title, children }) {
  return html`<div class="empty"><${Logo} size=${72} /><h2>${title}</h2><div class="hint">${children}</div></div>`;
}

export function Skeleton({ rows = 4 }) {
  return html`<div class="skeleton" role="status" aria-label="Loading">
    ${Array.from({ length: rows }, (_, i) => html`<span key=${i}></span>`)}</div>`;
}

export function Page({ title, note, actions, children, wide = false }) {
  return html`<section class=${wide ? "page wide" : "page"}>
    <header class="page-head"><div><h1>${title}</h1>${note ? html`<p>${note}</p>` : null}</div>
      ${actions ? html`<div class="actions">${actions}</div>` : null}</header>
    ${children}</section>`;
}

/** A modal dialog: the browser keeps the focus inside, Escape closes, the focus returns to where it was. */
export function Dialog({ title, wide = false, onClose, children }) {
  const element = useRef(null);
  useLayoutEffect(() => {
    const before = document.activeElement;
    const dialog = element.current;
    dialog.showModal();
    dialog.querySelector("[autofocus], input, select, textarea")?.focus();
    return () => {
      dialog.close();
      if (before?.isConnected) before.focus();
    };
  }, []);
  const cancel = (event) => {
    event.preventDefault();
    onClose();
  };
  return html`<dialog ref=${element} class=${wide ? "wide" : null} aria-labelledby="dialog-title" onCancel=${cancel} onKeyDown=${wrapFocus}>
    <header><h2 id="dialog-title">${title}</h2>
      <button type="button" class="icon" aria-label="Close" onClick=${onClose}><${Icon} name="close" /></button></header>
    ${children}</dialog>`;
}

function wrapFocus(event) {
  if (event.key !== "Tab") return;
  const all = [...event.currentTarget.querySelectorAll("a[href], button, input, select, textarea")];
  const stops = all.filter((stop) => !stop.disabled && stop.offsetParent !== null);
  const edge = event.shiftKey ? stops[0] : stops.at(-1);
  if (document.activeElement !== edge) return;
  event.preventDefault();
  (event.shiftKey ? stops.at(-1) : stops[0]).focus();
}

export function Field({ label, hint, error, children }) {
  return html`<label class="field"><span>${label}</span>${children}
    ${hint ? html`<small>${hint}</small>` : null}${error ? html`<small class="wrong" role="alert">${error}</small>` : null}</label>`;
}

/** A few exclusive choices in a row. `options` is [[value, label], ...]. */
export function Choice({ label, value, options, onChange }) {
  const name = `choice-${label.toLowerCase().replaceAll(" ", "-")}`;
  return html`<fieldset class="choice"><legend class="hidden">${label}</legend>
    ${options.map(([option, text]) => html`<label key=${option}>
      <input type="radio" name=${name} value=${option} checked=${option === value} onChange=${() => onChange(option)} />
      <span>${text}</span></label>`)}</fieldset>`;
}

export function Copy({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copyBySelection(text);
    }
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="quiet" onClick=${copy}><${Icon} name=${done ? "check" : "copy"} />${done ? "Copied" : label}</button>`;
}

/** Plain HTTP on another machine's address has no clipboard API. */
function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

const PATHS = {
  chat: "M4 5h16v11H9l-5 4z",
  keys: "M14.5 9.5a4.5 4.5 0 1 0-3.4 4.4L13 16h2.5v2.5h2.5V21h3v-3l-6.9-6.9a4.5 4.5 0 0 0 .4-1.6M9 9h.01",
  usage: "M4 20V10m5 10V4m5 16v-7m5 7V8",
  requests: "M3 12h4l3-8 4 16 3-8h4",
  models: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12L4 7.5",
  map: "M12 21s7-6 7-11a7 7 0 1 0-14 0c0 5 7 11 7 11m0-8.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5",
  physical: "M5 20h8M9 20v-5l5-5 5 3M14 10L10 5M10 5a2 2 0 1 0-3-2M17 12l3 4m-1-3l2-1",
  status: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18m-4-9l3 3 5-6",
  menu: "M4 7h16M4 12h16M4 17h16",
  close: "M6 6l12 12M18 6L6 18",
  send: "M4 12l16-8-5 16-3.5-6.5z",
  stop: "M7 7h10v10H7z",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  mic: "M12 15a3 3 0 0 0 3-3V6a3 3 0 1 0-6 0v6a3 3 0 0 0 3 3m-6-3a6 6 0 0 0 12 0M12 18v3",
  speak: "M4 10v4h3l5 4V6L7 10zM16 9a4 4 0 0 1 0 6M18.5 6.5a8 8 0 0 1 0 11",
  settings: "M4 8h9m4 0h3M4 16h3m4 0h9M15 6v4M9 14v4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12l5 5 9-10",
  again: "M20 11a8 8 0 1 0-2 6M20 5v6h-6",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8M12 2v3m0 14v3M2 12h3m14 0h3M5 5l2 2m10 10l2 2M5 19l2-2M17 7l2-2",
  moon: "M20 14A8 8 0 1 1 10 4a6.5 6.5 0 0 0 10 10",
  out: "M14 4h5v16h-5M4 12h10m-4-4l4 4-4 4",
  plus: "M12 5v14M5 12h14",
};

export function Icon({ name }) {
  return html`<svg class="glyph" viewBox="0 0 24 24" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;
}
