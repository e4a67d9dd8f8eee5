"""Speech synthesis with hibari (github.com/MMWilliams/hibari, Apache-2.0): text to 24 kHz, sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atoll.core.errors import InvalidRequest, Unsupported

VOICES = ("heart",)
MIN_SPEED, MAX_SPEED = 0.5, 2.0
MAX_INPUT = 4096


class Hibari:
    def __init__(self) -> None:
        import hibari

        # Other voices of this library are downloads; only the one inside its wheel is offered.
        self._tts = hibari.Hibari(voice=VOICES[0], threads=1)
        self.rate: int = hibari.SAMPLE_RATE
        self._tts("Ready.")

    def phonemes(self, text: str) -> list[str]:
        """One string per sentence. Raises InvalidRequest when there is nothing to say."""
        sentences = [said for said in self._tts.phonemize(text) if any(c.isalpha() for c in said)]
        if not any(len(self._tts.ids(said)) > 2 for said in sentences):
            raise InvalidRequest("input has nothing that this voice can say; it reads English text.", param="input")
        return sentences

    def speak(self, sentences: list[str], speed: float) -> Iterator[np.ndarray]:
        """Float32 samples at `rate` Hz, one array per sentence. The same text gives the same samples."""
        for said in sentences:
            yield self._tts.from_phonemes(said, speed=speed, seed=0)


def check_voice(voice: object) -> None:
    name = voice.get("id") if isinstance(voice, dict) else voice
    if name not in VOICES:
        raise Unsupported(f"voice must be one of: {', '.join(VOICES)}; not '{name}'.", param="voice")


def check_speed(speed: object) -> float:
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not MIN_SPEED <= speed <= MAX_SPEED:
        raise InvalidRequest(f"speed must be a number from {MIN_SPEED} to {MAX_SPEED}.", param="speed")
    return float(speed)


def check_input(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest("input must be a text that is not empty.", param="input")
    if len(text) > MAX_INPUT:
        raise InvalidRequest(f"input has {len(text)} characters; at most {MAX_INPUT} are read.", param="input")
    return text
