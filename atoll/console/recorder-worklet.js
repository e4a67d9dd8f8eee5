const CHUNK = 2048;

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.buffer = new Float32Array(CHUNK);
    this.filled = 0;
  }

  process([input]) {
    const samples = input[0];
    if (!samples) return true;
    this.buffer.set(samples, this.filled);
    this.filled += samples.length;
    if (this.filled === CHUNK) {
      this.port.postMessage(this.buffer.slice());
      this.filled = 0;
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
