"""Text cut into what a voice says in one go, and plain samples made a file."""

from __future__ import annotations

import io
import re
import wave

SENTENCE_END = re.compile(r"(?<=[.!?:;。！？])\s+|\n+|(?<=[。！？])")
MOST_CHARACTERS = 400
MOST_IN_A_PIECE = 4000
PCM_RATE = 24_000


class Sentences:
    """Text as it arrives to whole sentences; one without an end is cut at a space after 400 characters."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[str]:
        *whole, self._held = SENTENCE_END.split(self._held + text)
        while len(self._held) > MOST_CHARACTERS:
            at = self._held.rfind(" ", 1, MOST_CHARACTERS)
            at = at if at > 0 else MOST_CHARACTERS
            whole.append(self._held[:at])
            self._held = self._held[at:]
        return [sentence for sentence in whole if sentence.strip()]

    def rest(self) -> list[str]:
        held, self._held = self._held, ""
        return [held] if held.strip() else []


def pieces(text: str) -> list[str]:
    """`text` in parts of at most 4000 characters, cut between sentences."""
    if len(text) <= MOST_IN_A_PIECE:
        return [text]
    sentences = Sentences()
    result = [""]
    for sentence in [*sentences.feed(text), *sentences.rest()]:
        while len(sentence) > MOST_IN_A_PIECE:
            result.append(sentence[:MOST_IN_A_PIECE])
            sentence = sentence[MOST_IN_A_PIECE:]
        if len(result[-1]) + 1 + len(sentence) > MOST_IN_A_PIECE:
            result.append("")
        result[-1] = f"{result[-1]} {sentence}".strip()
    return [piece for piece in result if piece]


def wav(samples: bytes) -> bytes:
    """A WAV file of 16-bit mono samples at 24 kHz, which is what `pcm` means in this API."""
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(PCM_RATE)
        file.writeframes(samples)
    return sink.getvalue()
