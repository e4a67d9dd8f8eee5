import { html, useState } from "/console/vendor/preact-htm.js";
import { get, secret } from "/console/api.js";
import { Field, Logo, Problem } from "/console/ui.js";

export function SignIn({ onDone }) {
  const [value, setValue] = useState("");
  const [remember, setRemember] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);

  const submit = async (event) => {
    event.preventDefault();
    const key = value.trim();
    setBusy(true);
    setError(null);
    try {
      const me = await get("/atoll/v1/me", { key });
      secret.keep(key, remember);
      onDone(me);
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };

  return html`<main class="signin">
    <div class="signin-art" aria-hidden="true"><${Sea} /></div>
    <form onSubmit=${submit}>
      <h1><${Logo} size=${40} /> Atoll</h1>
      <p>An AI cloud of your own. Sign in with the API key that was printed when it started.</p>
      <${Field} label="API key" hint=${html`It begins with <code>sk-atoll-</code>. Lost it? Start Atoll again and it prints a new one.`}>
        <input type="password" name="key" autocomplete="current-password" spellcheck=${false} required autofocus
          placeholder="sk-atoll-…" value=${value} onInput=${(e) => setValue(e.target.value)} /><//>
      <label class="check"><input type="checkbox" checked=${remember} onChange=${(e) => setRemember(e.target.checked)} />
        Remember on this device <small>otherwise until this tab closes</small></label>
      <${Problem} error=${error} />
      <button class="primary" disabled=${busy || !value.trim()}>${busy ? "Checking…" : "Sign in"}</button>
    </form></main>`;
}

const STEPS = 120;

/** A closed, slightly irregular ring of mean radius `r` around the origin: the shape of the atoll. */
function contour(r) {
  const points = Array.from({ length: STEPS }, (_, i) => {
    const a = (i / STEPS) * 2 * Math.PI;
    const bend = 0.075 * Math.cos(2 * a + 0.6) + 0.05 * Math.cos(3 * a - 1) + 0.02 * Math.cos(5 * a + 2) + 0.008 * Math.cos(11 * a);
    const size = r * (1 + bend * Math.min(1.2, 46 / r));
    return `${(size * Math.cos(a)).toFixed(2)} ${(size * Math.sin(a)).toFixed(2)}`;
  });
  return `M${points.join("L")}Z`;
}

/** An atoll as a sea chart draws it: lagoon, reef, islets and the depth lines around them. */
function Sea() {
  const depths = [48, 53, 59, 66, 74, 83, 93];
  return html`<svg class="chart-of-sea" viewBox="-100 -100 200 200">
    ${depths.map((r) => html`<path key=${r} d=${contour(r)} />`)}
    <path class="shelf" d=${contour(44)} />
    <path class="lagoon" d=${contour(33)} />
    <path d=${contour(26)} /><path d=${contour(19)} />
    <path class="reef" d=${contour(39)} stroke-width="1.1" stroke-dasharray="34 5 52 7 20 4 61 9" />
    <path class="reef" d=${contour(39)} stroke-width="4.6" stroke-dasharray="19 23 7 11 30 17 3 8 12 35 5 13" />
    <path class="reef" d=${contour(38)} stroke-width="2.6" stroke-dasharray="6 44 13 27 2 19" stroke-dashoffset="17" />
  </svg>`;
}
