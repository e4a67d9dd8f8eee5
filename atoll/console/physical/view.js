/** Pictures and films that need the key to be seen: fetched, and shown from memory. */

import { html, useEffect, useState } from "/console/vendor/preact-htm.js";
import { ApiError, call } from "/console/api.js";
import { path } from "/console/physical/feed.js";
import { Problem } from "/console/ui.js";

const EVERY = 500;
const SELDOM = 3000;

/** The simulation of a step under way, for as long as the step shows one. */
export function LiveView({ run, step }) {
  const [picture, setPicture] = useState(null);
  useEffect(() => {
    const control = new AbortController();
    let timer;
    const look = async () => {
      let wait = EVERY;
      try {
        const answer = await call(`${path(run)}/steps/${encodeURIComponent(step)}/view`, { signal: control.signal });
        if (answer.status === 204) wait = SELDOM;
        else setPicture(await asData(await answer.blob()));
      } catch (error) {
        if (control.signal.aborted) return;
        if (!(error instanceof ApiError)) throw error;
        wait = SELDOM;
      }
      if (!control.signal.aborted) timer = setTimeout(look, wait);
    };
    look();
    return () => {
      control.abort();
      clearTimeout(timer);
    };
  }, [run, step]);
  if (!picture) return null;
  return html`<figure class="live-view"><img src=${picture} alt=${`The simulation of ${step} now`} /><figcaption><i></i>live: what ${step} simulates now</figcaption></figure>`;
}

const asData = (blob) => new Promise((done) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.readAsDataURL(blob);
});

/** A film of an artifact. It is fetched when asked for. */
export function Film({ digest, name }) {
  const [source, setSource] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => () => source && URL.revokeObjectURL(source), [source]);
  const load = async () => {
    try {
      const blob = await (await call(file(digest, name))).blob();
      setSource(URL.createObjectURL(new Blob([blob], { type: "video/mp4" })));
    } catch (problem) {
      setError(problem);
    }
  };
  const title = name.split("/").at(-1).replace(/\.mp4$/, "").replaceAll("-", " ");
  return html`<figure class="film">${source ? html`<video controls autoplay muted loop playsinline src=${source} aria-label=${title}></video>`
    : html`<button class="poster" onClick=${load}>Play: ${title}</button>`}<${Problem} error=${error} /><figcaption>${title}</figcaption></figure>`;
}

export const file = (digest, name) => `/atoll/v1/artifacts/${digest}/files/${name.split("/").map(encodeURIComponent).join("/")}`;

/** Save a file of an artifact. */
export async function save(digest, name) {
  const blob = await (await call(file(digest, name))).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.split("/").at(-1);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
