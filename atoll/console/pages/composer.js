import { html, useEffect, useLayoutEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { ApiError } from "/console/api.js";
import { picture, pictures } from "/console/images.js";
import { Icon, Problem } from "/console/ui.js";
import { Recorder, transcribe } from "/console/voice.js";

export function Composer({ chat, model, models }) {
  const [text, setText] = useState("");
  const [images, setImages] = useState([]);
  const [audio, setAudio] = useState(null);
  const [error, setError] = useState(null);
  const [over, setOver] = useState(false);
  const box = useRef(null);
  const sees = model.input.includes("image");

  useLayoutEffect(() => {
    box.current.style.height = "auto";
    box.current.style.height = `${box.current.scrollHeight + 2}px`;
  }, [text]);

  const submit = (event) => {
    event?.preventDefault();
    if (chat.busy || !(text.trim() || images.length || audio)) return;
    chat.send({ text: text.trim(), images, audio }, model);
    setText("");
    setImages([]);
    setAudio(null);
    setError(null);
    box.current.focus();
  };
  const take = async (files) => {
    setError(null);
    if (!files.length) return;
    if (!sees) return setError(blind(model, models));
    try {
      const added = await Promise.all(files.map(picture));
      setImages((before) => [...before, ...added]);
    } catch (problem) {
      setError(problem);
    }
  };
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "Escape" && chat.busy) chat.stop();
  };
  const paste = (event) => {
    const files = pictures(event.clipboardData);
    if (files.length) event.preventDefault();
    take(files);
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    take(pictures(event.dataTransfer));
  };
  const heard = (recording, words) => {
    if (words === null) setAudio(recording);
    else setText((before) => [before.trim(), words].filter(Boolean).join(" "));
    box.current.focus();
  };

  return html`<form class=${over ? "composer over" : "composer"} onSubmit=${submit} onDrop=${drop}
      onDragOver=${(e) => { e.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)}>
    <${Problem} error=${error} />
    <${Attached} images=${images} audio=${audio} dropImage=${(i) => setImages(images.filter((_, at) => at !== i))} dropAudio=${() => setAudio(null)} />
    <textarea ref=${box} rows="1" aria-label="Message" placeholder=${`Message ${model.title}`} value=${text}
      onInput=${(e) => setText(e.target.value)} onKeyDown=${keys} onPaste=${paste}></textarea>
    <div class="composer-tools">
      ${sees ? html`<${PickImages} onPick=${take} />` : null}
      <${Voice} chat=${chat} model=${model} models=${models} onHeard=${heard} onError=${setError} />
      <span class="grow hint-line">Enter sends, Shift+Enter starts a line</span>
      ${chat.busy ? html`<button type="button" class="primary stop" onClick=${chat.stop}><${Icon} name="stop" />Stop</button>`
        : html`<button class="primary" disabled=${!(text.trim() || images.length || audio)}><${Icon} name="send" />Send</button>`}
    </div></form>`;
}

function blind(model, models) {
  const seeing = models.filter((m) => m.task === "chat" && m.input.includes("image")).map((m) => m.id);
  const advice = seeing.length ? `Choose one that does: ${seeing.join(", ")}.` : "Add one that does on the Models page.";
  return new ApiError(`${model.title} does not take images. ${advice}`);
}

function Attached({ images, audio, dropImage, dropAudio }) {
  if (!images.length && !audio) return null;
  return html`<ul class="attached" aria-label="Attached">
    ${images.map((image, i) => html`<li key=${i}><img src=${image.url} alt=${image.name} />
      <button type="button" class="icon" aria-label=${`Remove ${image.name}`} onClick=${() => dropImage(i)}><${Icon} name="close" /></button></li>`)}
    ${audio ? html`<li class="tag"><${Icon} name="mic" />${audio.seconds.toFixed(1)} s
      <button type="button" class="icon" aria-label="Remove the recording" onClick=${dropAudio}><${Icon} name="close" /></button></li>` : null}</ul>`;
}

function PickImages({ onPick }) {
  const input = useRef(null);
  const picked = () => {
    onPick([...input.current.files]);
    input.current.value = "";
  };
  return html`<button type="button" class="icon" aria-label="Add an image" title="Add an image (or paste, or drop one)" onClick=${() => input.current.click()}>
    <${Icon} name="image" /></button>
    <input ref=${input} type="file" accept="image/*" multiple hidden aria-hidden="true" tabindex="-1" onChange=${picked} />`;
}

/** Records; then hands on the words, or the recording itself for models that hear. */
function Voice({ chat, model, models, onHeard, onError }) {
  const [state, setState] = useState("idle");
  const [level, setLevel] = useState(0);
  const recorder = useRef(null);
  const scribe = models.find((m) => m.task === "transcription" && m.state === "ready");
  const direct = model.input.includes("audio") && (chat.settings.voice === "audio" || !scribe);
  useEffect(() => () => recorder.current?.stop().catch(() => {}), []);
  if (!scribe && !direct) return null;

  const start = async () => {
    onError(null);
    recorder.current = await Recorder.start(setLevel);
    setState("recording");
  };
  const finish = async () => {
    setState("working");
    const active = recorder.current;
    recorder.current = null;
    const recording = await active.stop();
    const words = direct ? null : await transcribe(recording.blob, scribe.id);
    if (words === "") throw new ApiError("No words were heard. Speak closer to the microphone and try again.");
    onHeard(recording, words);
    setState("idle");
  };
  const toggle = async () => {
    try {
      await (state === "idle" ? start() : finish());
    } catch (problem) {
      setState("idle");
      onError(problem);
    }
  };
  const label = { idle: "Speak", recording: "Stop recording", working: "Transcribing…" }[state];
  return html`<button type="button" class=${`icon voice ${state}`} aria-label=${label} title=${label} disabled=${state === "working"} onClick=${toggle}>
    <${Icon} name=${state === "recording" ? "stop" : "mic"} /><i style=${{ transform: `scale(${1 + level})` }}></i></button>
    ${state === "idle" ? null : html`<span class="hint-line shown" role="status">${state === "recording" ? "Listening…" : label}</span>`}`;
}
