"""What a client has of an answer: the pieces that were sent, choice by choice."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Piece:
    """What one chunk adds to a choice. `ids` are the tokens it was made of, None where they are not known."""

    ids: tuple[int, ...] | None
    text: str
    finish: str | None = None

    def matches(self, other: Piece) -> bool:
        """By token ids where both know them, by text elsewhere."""
        known = self.ids is not None and other.ids is not None
        return (self.ids == other.ids if known else self.text == other.text) and self.finish == other.finish


@dataclass(slots=True)
class Told:
    """Grows as pieces are sent. `tokens` counts tokens, or pieces of text whose tokens are not known."""

    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    tokens: int = 0
    finished: bool = False

    def add(self, index: int, piece: Piece) -> None:
        self.pieces.setdefault(index, []).append(piece)
        self.tokens += len(piece.ids) if piece.ids is not None else int(bool(piece.text))
        self.finished = self.finished or piece.finish is not None

    def ids(self) -> list[int] | None:
        """The tokens of the only choice; None where some are not known or there are several choices."""
        if len(self.pieces) != 1:
            return None
        found: list[int] = []
        for piece in self.pieces[next(iter(self.pieces))]:
            if piece.ids is None:
                return None
            found += piece.ids
        return found
