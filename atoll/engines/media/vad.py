"""Voice activity detection with Silero VAD (https://github.com/snakers4/silero-vad, MIT): where is speech?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atoll.engines.media.audio import RATE, Sound

CHUNK, CONTEXT = 512, 64
STEP_S = CHUNK / RATE


@dataclass(frozen=True, slots=True)
class Rules:
    """When a run of chunks is a segment. Speech starts at `threshold` and ends below `threshold - 0.15`."""

    threshold: float = 0.5
    min_speech_ms: int = 250
    min_silence_ms: int = 100
    pad_ms: int = 30


class Silero:
    def __init__(self, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(folder / "silero_vad.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def probabilities(self, sound: Sound) -> Iterator[float]:
        """Probability of speech for every 32 ms; the last chunk is filled up with silence."""
        samples = np.pad(sound.samples, (CONTEXT, -len(sound.samples) % CHUNK))
        state, rate = np.zeros((2, 1, 128), np.float32), np.array(RATE, np.int64)
        for at in range(0, len(samples) - CONTEXT, CHUNK):
            window = samples[None, at : at + CONTEXT + CHUNK]
            out, state = self._session.run(None, {"input": window, "state": state, "sr": rate})
            yield float(out[0, 0])

    def segments(self, sound: Sound, rules: Rules) -> list[tuple[float, float]]:
        """(start, end) in seconds of every stretch of speech."""
        return group(list(self.probabilities(sound)), sound.seconds, rules)


def group(probabilities: list[float], seconds: float, rules: Rules) -> list[tuple[float, float]]:
    """Chunk probabilities to padded segments that do not overlap."""
    runs: list[list[float]] = []
    start: float | None = None
    quiet: float | None = None
    for i, p in enumerate(probabilities):
        now = i * STEP_S
        if p >= rules.threshold:
            start, quiet = (now if start is None else start), None
        elif start is not None and p < rules.threshold - 0.15:
            quiet = now if quiet is None else quiet
            if now + STEP_S - quiet >= rules.min_silence_ms / 1000:
                runs.append([start, quiet])
                start = quiet = None
    if start is not None:
        runs.append([start, seconds if quiet is None else quiet])
    kept = [run for run in runs if run[1] - run[0] >= rules.min_speech_ms / 1000]
    pad = rules.pad_ms / 1000
    padded: list[tuple[float, float]] = []
    for begin, end in kept:
        begin, end = max(0.0, begin - pad), min(seconds, end + pad)
        if padded and begin <= padded[-1][1]:
            begin = padded.pop()[0]
        padded.append((round(begin, 3), round(end, 3)))
    return padded
