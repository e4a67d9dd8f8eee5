import { html, useEffect, useLayoutEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { measure } from "/console/conversation.js";
import { count, milliseconds, money } from "/console/format.js";
import { render } from "/console/markdown.js";
import { Composer } from "/console/pages/composer.js";
import { Choice, Copy, Dialog, Field, Icon, Logo, Problem, Skeleton } from "/console/ui.js";
import { speak } from "/console/voice.js";

const STARTERS = [
  "Explain in three sentences why the sea is salty.",
  "Write a short poem about a lagoon at dawn.",
  "Give me five names for a small sailing boat.",
];

export function ChatPage({ chat, models }) {
  const [setting, setSetting] = useState(false);
  if (!models.data) return models.error ? html`<${Problem} error=${models.error} retry=${models.reload} />` : html`<${Skeleton} />`;
  const talkers = models.data.filter((m) => m.task === "chat");
  const model = talkers.find((m) => m.id === chat.settings.model) ?? talkers.find((m) => m.state === "ready") ?? talkers[0];
  if (!model) return html`<${Problem} error=${{ message: "No chat model is installed. Add one on the Models page." }} />`;

  return html`<div class="chat">
    <h1 class="hidden">Chat</h1>
    <${Bar} chat=${chat} talkers=${talkers} model=${model} onSettings=${() => setSetting(true)} />
    <${Log} chat=${chat} model=${model} models=${models.data} />
    <${Composer} chat=${chat} model=${model} models=${models.data} />
    ${setting ? html`<${Settings} chat=${chat} model=${model} onClose=${() => setSetting(false)} />` : null}
  </div>`;
}

function Bar({ chat, talkers, model, onSettings }) {
  const title = (m) => `${m.tier ? `${m.tier} · ` : ""}${m.title}${m.state === "ready" ? "" : ` (${m.state})`}`;
  const thinks = chat.settings.thinking;
  return html`<div class="chat-bar">
    <div class="model-pick"><select aria-label="Model" value=${model.id} onChange=${(e) => chat.change({ model: e.target.value })}>
        ${talkers.map((m) => html`<option key=${m.id} value=${m.id} selected=${m.id === model.id}>${title(m)}</option>`)}</select></div>
    ${model.thinking === "switch" ? html`<button class="switch" role="switch" aria-checked=${thinks}
      onClick=${() => chat.change({ thinking: !thinks })}><i></i>Thinking</button>` : null}
    ${model.thinking === "always" ? html`<span class="tag">always thinks</span>` : null}
    <span class="grow"></span>
    ${chat.messages.length ? html`<button class="quiet" onClick=${chat.clear}><${Icon} name="plus" />New chat</button>` : null}
    <button class="quiet" onClick=${onSettings} aria-label="Chat settings"><${Icon} name="settings" /><span class="wide-only">Settings</span></button>
    ${model.note ? html`<p class="model-note"><strong>${model.title}</strong> ${model.note}</p>` : null}
  </div>`;
}

function Log({ chat, model, models }) {
  const scroller = useRef(null);
  const follow = useRef(true);
  const last = chat.messages.at(-1);
  useLayoutEffect(() => {
    if (follow.current) scroller.current.scrollTop = scroller.current.scrollHeight;
  }, [chat.messages]);
  const scrolled = ({ currentTarget: box }) => {
    follow.current = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  };
  return html`<div class="log" ref=${scroller} onScroll=${scrolled} tabindex="0" role="group" aria-label="Conversation">
    ${chat.messages.length ? chat.messages.map((m) => html`<${Message} key=${m.id} message=${m} models=${models}
      again=${m === last && !chat.busy && m.role === "assistant" ? () => chat.again(model) : null} />`)
    : html`<div class="welcome"><${Logo} size=${104} /><h2>What shall we talk about?</h2>
      <div class="starters">${STARTERS.map((text) => html`<button key=${text} onClick=${() => chat.send({ text }, model)}>${text}</button>`)}</div></div>`}
    <${Announcer} message=${last} busy=${chat.busy} />
  </div>`;
}

/** Speaks whole sentences to screen readers as they arrive, never single tokens. */
function Announcer({ message, busy }) {
  const said = useRef({ id: 0, length: 0 });
  const [text, setText] = useState("");
  useEffect(() => {
    if (message?.role !== "assistant") return;
    if (said.current.id !== message.id) said.current = { id: message.id, length: 0 };
    const rest = message.text.slice(said.current.length);
    const end = busy ? Math.max(...[". ", "! ", "? ", "\n"].map((mark) => rest.lastIndexOf(mark))) + 1 : rest.length;
    if (end < 1) return;
    said.current.length += end;
    setText(rest.slice(0, end));
  }, [message, busy]);
  return html`<div class="hidden" aria-live="polite" data-testid="announcer">${text}</div>`;
}

function Message({ message, models, again }) {
  const { role, text, thinking, images = [], audio, meta } = message;
  if (role === "user") {
    return html`<article class="said" aria-label="You">
      ${images.map((image) => html`<img key=${image.url} src=${image.url} alt=${image.name} />`)}
      ${audio ? html`<p class="tag"><${Icon} name="mic" />spoken, ${audio.seconds.toFixed(1)} s</p>` : null}
      ${text ? html`<p>${text}</p>` : null}</article>`;
  }
  return html`<article class=${meta.done ? "answer" : "answer busy"} aria-label=${`Answer of ${meta.model.title}`}>
    <${Logo} size=${26} />
    <div>${thinking ? html`<details class="thoughts" open=${!text}><summary>Thoughts</summary><p>${thinking}</p></details>` : null}
      <${Markdown} text=${text} />
      ${!text && !thinking && !meta.done ? html`<p class="faint">Reading the question…</p>` : null}
      <${Problem} error=${meta.error} />
      <${Facts} message=${message} models=${models} again=${again} /></div></article>`;
}

function Markdown({ text }) {
  const box = useRef(null);
  useLayoutEffect(() => box.current.replaceChildren(render(text)), [text]);
  return html`<div class="markdown" ref=${box}></div>`;
}

function Facts({ message, models, again }) {
  const { meta, text } = message;
  if (!meta.done) return null;
  const facts = measure(meta);
  const speaker = models.find((m) => m.task === "speech" && m.state === "ready");
  return html`<footer class="facts">
    ${meta.stopped ? html`<span class="tag">stopped</span>` : null}
    ${meta.finish === "length" ? html`<span class="tag" title="Raise max tokens in the settings">cut at the token limit</span>` : null}
    ${facts ? html`<dl>
      ${facts.perSecond ? html`<div><dt>speed</dt><dd>${facts.perSecond.toFixed(1)} tokens/s</dd></div>` : null}
      <div><dt>first token</dt><dd>${milliseconds(meta.firstMs)}</dd></div>
      <div><dt>tokens</dt><dd>${count(facts.input)} in, ${count(facts.output)} out</dd></div>
      <div><dt>cost</dt><dd>${money(facts.cost)}</dd></div>
      ${meta.region ? html`<div><dt>region</dt><dd>${meta.region}</dd></div>` : null}</dl>` : null}
    <span class="tools">${text ? html`<${Copy} text=${text} />` : null}
      ${text && speaker ? html`<${ReadAloud} text=${text} model=${speaker} />` : null}
      ${again ? html`<button class="quiet" onClick=${again}><${Icon} name="again" />Again</button>` : null}</span></footer>`;
}

function ReadAloud({ text, model }) {
  const [state, setState] = useState("idle");
  const [error, setError] = useState(null);
  const playing = useRef(null);
  useEffect(() => () => playing.current?.stop(), []);
  const toggle = async () => {
    if (playing.current) return playing.current.stop();
    setState("loading");
    setError(null);
    try {
      playing.current = await speak(text, model, () => {
        playing.current = null;
        setState("idle");
      });
      setState("playing");
    } catch (problem) {
      setError(problem);
      setState("idle");
    }
  };
  const label = { idle: "Read aloud", loading: "Preparing…", playing: "Stop reading" }[state];
  return html`<button class="quiet" disabled=${state === "loading"} onClick=${toggle}>
    <${Icon} name=${state === "playing" ? "stop" : "speak"} />${label}</button><${Problem} error=${error} />`;
}

function Settings({ chat, model, onClose }) {
  const { settings, change } = chat;
  const set = (name) => (event) => change({ [name]: event.target.value });
  return html`<${Dialog} title="Chat settings" onClose=${onClose}>
    <form onSubmit=${(e) => { e.preventDefault(); onClose(); }}>
      <${Field} label="System prompt" hint="Said to the model before the conversation.">
        <textarea rows="4" value=${settings.system} onInput=${set("system")}></textarea><//>
      ${model.parameters.includes("temperature") ? html`<${Field} label="Temperature" hint="0 always picks the likeliest word; empty leaves it to the model.">
        <input type="number" min="0" max="2" step="0.1" value=${settings.temperature} onInput=${set("temperature")} /><//>` : null}
      <${Field} label="Max tokens" hint=${`Longest answer; ${model.title} writes at most ${count(model.max_output)}.`}>
        <input type="number" min="1" max=${model.max_output} step="1" value=${settings.maxTokens} onInput=${set("maxTokens")} /><//>
      ${model.input.includes("audio") ? html`<div class="field"><span>Voice goes in as</span>
        <${Choice} label="Voice goes in as" value=${settings.voice} options=${[["text", "text, transcribed"], ["audio", "sound"]]}
          onChange=${(voice) => change({ voice })} /></div>` : null}
      <footer><button class="primary">Done</button></footer>
    </form><//>`;
}
