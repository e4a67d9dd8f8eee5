// A tour of an OpenAI-compatible API with the official Node SDK. Prints one JSON object of what was seen.
// Usage: ATOLL_URL=http://host:port ATOLL_KEY=sk-... node tour.mjs
import OpenAI, { toFile } from "openai";

const client = new OpenAI({
  baseURL: `${process.env.ATOLL_URL}/v1`,
  apiKey: process.env.ATOLL_KEY,
  maxRetries: 0,
  timeout: 120_000,
});
const model = "max";
const messages = [{ role: "user", content: "Write one short sentence about the sea." }];
const greedy = { model, messages, max_tokens: 24, temperature: 0, seed: 5 };
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string" } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};
const schema = {
  type: "object",
  properties: { mood: { type: "string", enum: ["good", "bad"] }, stars: { type: "integer", enum: [1, 2, 3] } },
  required: ["mood", "stars"],
  additionalProperties: false,
};

async function stream() {
  const pieces = [];
  let usage = null;
  const events = await client.chat.completions.create({
    ...greedy,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of events) {
    if (chunk.choices.length) pieces.push(chunk.choices[0].delta.content ?? "");
    usage = chunk.usage ?? usage;
  }
  return { text: pieces.join(""), pieces: pieces.length, usage };
}

async function called() {
  const answer = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: "What is the weather in Paris?" }],
    tools: [tool],
    tool_choice: "required",
    max_tokens: 200,
  });
  const call = answer.choices[0].message.tool_calls[0];
  return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
}

async function shaped() {
  const answer = await client.chat.completions.parse({
    model,
    messages: [{ role: "user", content: "Rate this review: 'Lovely soup.'" }],
    response_format: { type: "json_schema", json_schema: { name: "rating", schema, strict: true } },
    max_tokens: 100,
  });
  return answer.choices[0].message.parsed;
}

async function responses() {
  const first = await client.responses.create({ model, input: "My name is Ada.", max_output_tokens: 20 });
  const events = [];
  const following = await client.responses.create({
    model,
    input: "Go on.",
    previous_response_id: first.id,
    max_output_tokens: 20,
    stream: true,
  });
  for await (const event of following) events.push(event.type);
  return { text: first.output_text, first: events[0], last: events.at(-1) };
}

async function audio() {
  const input = "The quick brown fox jumps over the lazy dog.";
  const speech = await client.audio.speech.create({
    model: "hibari-heart",
    voice: "heart",
    input,
    response_format: "wav",
  });
  const bytes = Buffer.from(await speech.arrayBuffer());
  const heard = await client.audio.transcriptions.create({ model: "whisper-base", file: await toFile(bytes, "fox.wav") });
  return { bytes: bytes.length, heard: heard.text };
}

async function refused() {
  try {
    await client.chat.completions.create({ model: "no-such-model", messages });
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code };
  }
}

const chat = await client.chat.completions.create(greedy);
const vectors = await client.embeddings.create({ model: "all-minilm-l6-v2", input: ["a cat", "a dog"] });
const models = [];
for await (const found of client.models.list()) models.push(found.id);
console.log(
  JSON.stringify({
    models,
    chat: { text: chat.choices[0].message.content, usage: chat.usage },
    stream: await stream(),
    tool: await called(),
    schema: await shaped(),
    responses: await responses(),
    embeddings: vectors.data.map((row) => row.embedding.length),
    audio: await audio(),
    refused: await refused(),
  }),
);
