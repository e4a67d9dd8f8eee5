"""Word times from Whisper's cross-attention alignment (the alignment heads of the model; openai/whisper, MIT)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

FRAME_S = 0.02


@dataclass(frozen=True, slots=True)
class Word:
    """Times in seconds; `token` is the number of its first token."""

    word: str
    start: float
    end: float
    token: int


def split_words(
    tokens: list[int],
    alignment: Sequence[tuple[int, int]],
    decode: Callable[[list[int]], str],
    offset: float,
    *,
    spaced: bool,
) -> tuple[Word, ...]:
    """Words with their times. `alignment` is a path of (token, frame of 20 ms), rising in both; the token after the
    last one is the end mark. Tokens that are part of a character wait for its rest; punctuation joins the word before.
    """
    first: dict[int, int] = {}
    for token, frame in alignment:
        first.setdefault(token, frame)
    end = alignment[-1][1] if alignment else 0
    groups: list[tuple[int, str]] = []
    begin, held = 0, []
    for i, token in enumerate(tokens):
        held.append(token)
        piece = decode(held)
        if "\ufffd" in piece:
            continue
        new = piece.startswith(" ") if spaced else any(c.isalnum() for c in piece)
        if groups and not (new and any(c.isalnum() for c in piece)):
            groups[-1] = (groups[-1][0], groups[-1][1] + piece)
        else:
            groups.append((begin, piece))
        begin, held = i + 1, []
    marks = [first.get(index, end) for index, _ in groups] + [first.get(len(tokens), end)]
    return tuple(
        Word(text.strip(), round(offset + marks[i] * FRAME_S, 2), round(offset + marks[i + 1] * FRAME_S, 2), token)
        for i, (token, text) in enumerate(groups)
    )
