/** The public API as the console uses it: the key, JSON calls, server-sent events. */

const SLOT = "atoll.key";

export class ApiError extends Error {
  /** @param {number} status HTTP status; 0 when the server could not be reached */
  constructor(message, { status = 0, param = null, code = null, type = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, type, retryAfter });
  }
}

export const secret = {
  read: () => sessionStorage.getItem(SLOT) ?? localStorage.getItem(SLOT),
  keep(value, remember) {
    secret.forget();
    (remember ? localStorage : sessionStorage).setItem(SLOT, value);
  },
  forget() {
    sessionStorage.removeItem(SLOT);
    localStorage.removeItem(SLOT);
  },
};

/** A fetch with the key. `body` is a FormData, or anything that becomes JSON. Throws ApiError. */
export async function call(path, { method = "GET", body, signal, key = secret.read() } = {}) {
  const headers = { authorization: `Bearer ${key ?? ""}` };
  const form = body instanceof FormData;
  if (body !== undefined && !form) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined || form ? body : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("Atoll does not answer. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export const get = async (path, options) => (await call(path, options)).json();
export const send = async (method, path, body) => (await call(path, { method, body })).json();

async function refusal(response) {
  const text = await response.text();
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    error = { message: text.slice(0, 300) };
  }
  const message = error.message || `the server answered ${response.status}`;
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  return new ApiError(message, { ...error, status: response.status, retryAfter });
}

/** The events of a text/event-stream body: `{event, data}` with `data` parsed; ends at "[DONE]". Throws ApiError. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let step;
      try {
        step = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The connection broke before the answer was complete.");
      }
      if (step.done) return;
      const blocks = (rest + step.value.replaceAll("\r", "")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parse(block);
        if (found?.data === "[DONE]") return;
        if (found) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) event = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (!data.length) return null;
  const text = data.join("\n");
  return { event, data: text === "[DONE]" ? text : JSON.parse(text) };
}
