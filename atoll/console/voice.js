/** The microphone as a WAV file, and answers read aloud. */

import { ApiError, call } from "/console/api.js";

const RATE = 16_000;
const MOST_CHARACTERS = 4000;

/** Records until `stop`, which gives {blob, base64, seconds}: mono WAV, 16 kHz, 16 bit. */
export class Recorder {
  /** @param {(level: number) => void} onLevel loudness from 0 to 1, about 20 times a second. Throws ApiError. */
  static async start(onLevel) {
    if (!navigator.mediaDevices) throw new ApiError("The browser only lends the microphone to pages on localhost or https.");
    const recorder = new Recorder();
    recorder.chunks = [];
    try {
      recorder.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true } });
    } catch (error) {
      const denied = error.name === "NotAllowedError";
      throw new ApiError(denied ? "The browser did not allow the microphone for this page." : `No microphone: ${error.message}`);
    }
    recorder.context = new AudioContext();
    await recorder.context.audioWorklet.addModule("/console/recorder-worklet.js");
    const node = new AudioWorkletNode(recorder.context, "recorder");
    node.port.onmessage = ({ data }) => {
      recorder.chunks.push(data);
      onLevel(Math.min(1, 4 * Math.sqrt(data.reduce((sum, x) => sum + x * x, 0) / data.length)));
    };
    recorder.context.createMediaStreamSource(recorder.stream).connect(node).connect(recorder.context.destination);
    return recorder;
  }

  async stop() {
    this.stream.getTracks().forEach((track) => track.stop());
    const rate = this.context.sampleRate;
    await this.context.close();
    const samples = await resample(join(this.chunks), rate);
    const blob = wav(samples);
    return { blob, base64: await base64(blob), seconds: samples.length / RATE };
  }
}

function join(chunks) {
  const all = new Float32Array(chunks.reduce((n, chunk) => n + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}

async function resample(samples, rate) {
  if (!samples.length) throw new ApiError("Nothing was recorded. Hold on a little longer before you stop.");
  const offline = new OfflineAudioContext(1, Math.ceil((samples.length * RATE) / rate), RATE);
  const buffer = offline.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = offline.createBufferSource();
  source.buffer = buffer;
  source.connect(offline.destination);
  source.start();
  return (await offline.startRendering()).getChannelData(0);
}

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + samples.length * 2, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, RATE * 2, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, samples.length * 2, true);
  samples.forEach((x, i) => view.setInt16(44 + i * 2, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new Blob([view], { type: "audio/wav" });
}

async function base64(blob) {
  return (await dataUrl(blob)).split(",")[1];
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}

export async function transcribe(blob, model) {
  const body = new FormData();
  body.append("file", blob, "voice.wav");
  body.append("model", model);
  return (await (await call("/v1/audio/transcriptions", { method: "POST", body })).json()).text.trim();
}

/** Starts to speak; `onEnd` runs once when it ends or is stopped. -> {stop()} */
export async function speak(text, model, onEnd) {
  const voice = model.voices[0] ?? "alloy";
  const body = { model: model.id, input: text.slice(0, MOST_CHARACTERS), voice, response_format: "wav" };
  const response = await call("/v1/audio/speech", { method: "POST", body });
  const url = URL.createObjectURL(await response.blob());
  const audio = new Audio(url);
  const finish = () => {
    audio.pause();
    URL.revokeObjectURL(url);
    onEnd();
  };
  audio.onended = finish;
  await audio.play();
  return { stop: finish };
}
