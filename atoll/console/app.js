/** The console: sign in, navigation, and which page is shown. */

import { html, render, useEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { get, secret } from "/console/api.js";
import { useChat } from "/console/conversation.js";
import { ChatPage } from "/console/pages/chat.js";
import { KeysPage } from "/console/pages/keys.js";
import { MapPage } from "/console/pages/map.js";
import { ModelsPage } from "/console/pages/models.js";
import { PhysicalPage } from "/console/pages/physical.js";
import { RequestsPage } from "/console/pages/requests.js";
import { SignIn } from "/console/pages/signin.js";
import { StatusPage } from "/console/pages/status.js";
import { UsagePage } from "/console/pages/usage.js";
import { Icon, Logo, Problem, Skeleton, useLoad } from "/console/ui.js";

const PAGES = [
  { id: "chat", title: "Chat", page: ChatPage },
  { id: "usage", title: "Usage", page: UsagePage },
  { id: "requests", title: "Requests", page: RequestsPage },
  { id: "keys", title: "Keys", page: KeysPage, admin: true },
  { id: "models", title: "Models", page: ModelsPage },
  { id: "map", title: "Map", page: MapPage },
  { id: "physical", title: "Physical", page: PhysicalPage, admin: true },
  { id: "status", title: "Status", page: StatusPage },
];

function useRoute() {
  const read = () => location.hash.replace(/^#\/?/, "").split("?")[0] || "chat";
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const moved = () => setRoute(read());
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  return route;
}

function App() {
  const [me, setMe] = useState(null);
  const [error, setError] = useState(null);
  const [asked, setAsked] = useState(!secret.read());
  const [turn, setTurn] = useState(0);

  const signOut = () => {
    secret.forget();
    setMe(null);
    setAsked(true);
  };

  useEffect(() => {
    if (asked) return;
    setError(null);
    get("/atoll/v1/me").then((found) => setMe(found), (problem) => (problem.status === 401 ? signOut() : setError(problem)));
  }, [asked, turn]);

  if (asked) return html`<${SignIn} onDone=${(found) => { setMe(found); setAsked(false); }} />`;
  if (me) return html`<${Console} me=${me} signOut=${signOut} />`;
  return html`<main class="alone">${error
    ? html`<${Problem} error=${error} retry=${() => setTurn(turn + 1)} /><button class="quiet" onClick=${signOut}>Use another key</button>`
    : html`<${Skeleton} />`}</main>`;
}

function Console({ me, signOut }) {
  const route = useRoute();
  const models = useLoad((signal) => get("/v1/models", { signal }).then((found) => found.data), [], 8000);
  const chat = useChat();
  const main = useRef(null);
  const first = useRef(true);
  const admin = me.key.role === "admin";
  const offered = PAGES.filter((p) => admin || !p.admin);
  const here = offered.find((p) => p.id === route) ?? offered[0];

  useEffect(() => {
    document.title = `${here.title} · Atoll`;
    if (!first.current) main.current.focus({ preventScroll: true });
    if (!first.current) scrollTo(0, 0);
    first.current = false;
  }, [here.id]);
  useEffect(() => {
    if (models.error?.status === 401) signOut();
  }, [models.error]);

  return html`<div class="shell">
    <a class="skip" href=${`#/${here.id}`} onClick=${(e) => { e.preventDefault(); main.current.focus(); }}>Skip to content</a>
    <${Rail} pages=${offered} here=${here} me=${me} signOut=${signOut} />
    <main ref=${main} id="main" tabindex="-1" class=${`at-${here.id}`}>
      <${here.page} key=${here.id} me=${me} admin=${admin} models=${models} chat=${chat} />
    </main></div>`;
}

function Rail({ pages, here, me, signOut }) {
  const [open, setOpen] = useState(false);
  const toggle = useRef(null);
  useEffect(() => setOpen(false), [here.id]);
  const escape = (event) => {
    if (event.key !== "Escape" || !open) return;
    setOpen(false);
    toggle.current.focus();
  };
  return html`<header class=${open ? "rail open" : "rail"} onKeyDown=${escape}>
    <a class="brand" href="#/chat"><${Logo} /><span>Atoll</span></a>
    <span class="where" aria-hidden="true">${here.title}</span>
    <button ref=${toggle} class="icon burger" aria-expanded=${open} aria-controls="nav" aria-label="Menu" onClick=${() => setOpen(!open)}>
      <${Icon} name=${open ? "close" : "menu"} /></button>
    <div class="rail-body" id="nav">
      <nav aria-label="Pages">${pages.map((p) => html`<a key=${p.id} href=${`#/${p.id}`}
        aria-current=${p.id === here.id ? "page" : null} onClick=${() => setOpen(false)}><${Icon} name=${p.id} />${p.title}</a>`)}</nav>
      <div class="rail-foot">
        <p title=${me.key.hint}><strong>${me.key.name}</strong><span>${me.key.role} key</span></p>
        <${Theme} />
        <button class="icon" aria-label="Sign out" title="Sign out" onClick=${signOut}><${Icon} name="out" /></button>
      </div>
    </div></header>`;
}

function Theme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? system);
  const next = theme === "dark" ? "light" : "dark";
  const change = () => {
    document.documentElement.dataset.theme = next;
    localStorage.setItem("atoll.theme", next);
    dispatchEvent(new Event("atoll:theme"));
    setTheme(next);
  };
  return html`<button class="icon" aria-label=${`Switch to the ${next} theme`} title=${`${sentence(next)} theme`} onClick=${change}>
    <${Icon} name=${theme === "dark" ? "sun" : "moon"} /></button>`;
}

const sentence = (word) => word[0].toUpperCase() + word.slice(1);

render(html`<${App} />`, document.getElementById("app"));
