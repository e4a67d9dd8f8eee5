/** One conversation: its messages, its settings, and the answer that is arriving. Lives as long as the tab. */

import { useEffect, useRef, useState } from "/console/vendor/preact-htm.js";
import { ApiError, call, events } from "/console/api.js";

const SLOT = "atoll.chat";
const FRESH = { model: null, system: "", temperature: "", maxTokens: "", thinking: false, voice: "text" };
const FRAME_MS = 40;

export function useChat() {
  const [messages, setMessages] = useState([]);
  const [busy, setBusy] = useState(false);
  const [settings, setSettings] = useState(() => ({ ...FRESH, ...JSON.parse(localStorage.getItem(SLOT) ?? "{}") }));
  const control = useRef(null);
  useEffect(() => localStorage.setItem(SLOT, JSON.stringify(settings)), [settings]);

  const answer = async (history, model) => {
    const reply = { id: crypto.getRandomValues(new Uint32Array(1))[0], role: "assistant", text: "", thinking: "", meta: { model } };
    const show = () => setMessages([...history, { ...reply, meta: { ...reply.meta } }]);
    control.current = new AbortController();
    setBusy(true);
    show();
    try {
      await stream(request(history, settings, model), reply, throttle(show), control.current.signal);
    } catch (error) {
      if (error.name === "AbortError") reply.meta.stopped = true;
      else if (error instanceof ApiError) reply.meta.error = error;
      else throw error;
    } finally {
      reply.meta.done = true;
      setBusy(false);
      show();
    }
  };

  return {
    messages,
    busy,
    settings,
    change: (part) => setSettings((before) => ({ ...before, ...part })),
    send: (message, model) => answer([...messages, { id: Date.now(), role: "user", ...message }], model),
    again: (model) => answer(messages.slice(0, -1), model),
    stop: () => control.current?.abort(),
    clear: () => {
      control.current?.abort();
      setMessages([]);
    },
  };
}

/** Calls `show` at most every FRAME_MS, and once after the last change. */
export function throttle(show) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      show();
    }, FRAME_MS);
  };
}

/** The body of a chat completion. Settings that the model does not have are left out. */
export function request(history, settings, model) {
  const messages = history.filter((m) => m.role === "user" || m.text).map(wire);
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model: model.id, messages, stream: true, stream_options: { include_usage: true } };
  if (settings.temperature !== "" && model.parameters.includes("temperature")) body.temperature = Number(settings.temperature);
  if (settings.maxTokens !== "") body.max_tokens = Number(settings.maxTokens);
  if (model.thinking === "switch") body.reasoning_effort = settings.thinking ? "medium" : "none";
  return body;
}

function wire({ role, text, images = [], audio }) {
  if (!images.length && !audio) return { role, content: text };
  const parts = images.map((image) => ({ type: "image_url", image_url: { url: image.url } }));
  if (audio) parts.push({ type: "input_audio", input_audio: { data: audio.base64, format: "wav" } });
  if (text) parts.push({ type: "text", text });
  return { role, content: parts };
}

/** Streams the answer to `body` into `reply` {text, thinking, meta}; `changed()` after each event. Throws ApiError. */
export async function stream(body, reply, changed, signal) {
  const meta = reply.meta;
  const began = performance.now();
  const response = await call("/v1/chat/completions", { method: "POST", body, signal });
  meta.region = response.headers.get("x-atoll-region");
  meta.request = response.headers.get("x-request-id");
  for await (const { data } of events(response)) {
    if (data.error) throw new ApiError(data.error.message, data.error);
    if (data.usage) meta.usage = data.usage;
    const choice = data.choices?.[0];
    const delta = choice?.delta ?? {};
    if (delta.content || delta.reasoning_content) meta.firstMs ??= performance.now() - began;
    reply.text += delta.content ?? "";
    reply.thinking += delta.reasoning_content ?? "";
    if (choice?.finish_reason) meta.finish = choice.finish_reason;
    meta.totalMs = performance.now() - began;
    changed();
  }
  if (!meta.finish) throw new ApiError("The answer ended before it was complete.");
}

/** What an answer cost and how fast it came: {tokens, perSecond, cost}; null before usage is known. */
export function measure({ usage, model, firstMs, totalMs }) {
  if (!usage) return null;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const { price } = model;
  const cost = ((usage.prompt_tokens - cached) * price.input + cached * price.cached + usage.completion_tokens * price.output) / 1e6;
  const seconds = (totalMs - firstMs) / 1000;
  const perSecond = usage.completion_tokens > 1 && seconds > 0 ? (usage.completion_tokens - 1) / seconds : null;
  return { input: usage.prompt_tokens, output: usage.completion_tokens, cached, perSecond, cost };
}
