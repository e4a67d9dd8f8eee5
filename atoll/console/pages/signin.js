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
    <div class="signin-art" aria-hidden="true"><${Logo} size=${320} /></div>
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
