"""What a client has of an answer: tokens and text, choice by choice."""

from __future__ import annotations

from dataclasses import dataclass, field

from atoll.core.recover import Verifier


@dataclass(slots=True)
class Part:
    """One choice. `ids` are the tokens of all that was sent, None once some are not known; `texts` by channel; `calls`
    the names of the tools whose calls have begun, by index."""

    ids: list[int] | None = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[int, str] = field(default_factory=dict)
    tokens: int = 0
    finished: bool = False

    def add(self, ids: tuple[int, ...] | None, text: str, channel: str) -> None:
        if self.ids is not None and ids is not None:
            self.ids += ids
        else:
            self.ids = None
        self.texts.setdefault(channel, []).append(text)
        self.tokens += int(bool(text)) if ids is None else len(ids)

    def verifier(self) -> Verifier:
        ids = None if self.ids is None else tuple(self.ids)
        return Verifier(ids, {channel: "".join(texts) for channel, texts in self.texts.items()})


@dataclass(slots=True)
class Told:
    """All choices, by index."""

    parts: dict[int, Part] = field(default_factory=dict)

    def part(self, index: int) -> Part:
        return self.parts.setdefault(index, Part())

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts.values())

    @property
    def ids(self) -> list[int] | None:
        """The tokens of the only choice; None where some are not known, or there are several choices or none."""
        return next(iter(self.parts.values())).ids if len(self.parts) == 1 else None

    @property
    def finished(self) -> bool:
        return any(part.finished for part in self.parts.values())
