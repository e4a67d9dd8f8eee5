"""Which endpoint has already read the beginning of a prompt: the memory behind prefix affinity.

A prompt is cut at fixed offsets, each cut named by a hash of everything before it, so prompts that begin alike share
their first hashes. The cuts are 256 bytes apart up to 4 KiB, then 12 % apart up to 1 MiB: 64 hashes cover a long
conversation. A CRC-32 is enough: the memory is a hint, a false match (2e-5 a look-up at 100,000 entries) costs one
ill-judged preference, and it is computed in a quarter of the time of a short BLAKE2b.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol
from zlib import crc32

HOLDERS = 4


def _offsets() -> tuple[int, ...]:
    fine = [256 * i for i in range(1, 17)]
    coarse = [round(4096 * 256 ** (i / 48)) for i in range(1, 49)]
    return (*fine, *coarse)


OFFSETS = _offsets()


def blocks(prompt: bytes, salt: str = "") -> tuple[int, ...]:
    """Hashes of the growing beginnings of `prompt`, shortest first; at most 64, none for less than 256 bytes.

    `salt` keeps apart what must not be mixed: give the card's id (and the tenant's, where caches are not shared)."""
    crc, start, size, out = crc32(salt.encode()), 0, len(prompt), []
    for end in OFFSETS:
        if end > size:
            break
        crc = crc32(prompt[start:end], crc)
        start = end
        out.append(crc)
    return tuple(out)


class Remembered(Protocol):
    """What a decision leaves behind (`core.route.Decision`)."""

    @property
    def model(self) -> str: ...
    @property
    def chosen(self) -> str | None: ...
    @property
    def remember(self) -> Sequence[int]: ...


class Memory:
    """Hash -> the last endpoints (newest first, at most four) that read a prompt with that beginning; and, for policies
    that take turns, the number of decisions applied by model.

    Bounded: beyond `capacity` entries the least recently used goes. Of one prompt, the longest beginnings go first."""

    __slots__ = ("_alone", "capacity", "entries", "turns")

    def __init__(self, capacity: int = 100_000) -> None:
        self.capacity = capacity
        self.entries: OrderedDict[int, tuple[str, ...]] = OrderedDict()
        self.turns: dict[str, int] = {}
        self._alone: dict[str, tuple[str, ...]] = {}

    def holders(self, hashes: Sequence[int]) -> dict[str, int]:
        """Endpoint -> how many of the hashes it holds, longest first; ends once four endpoints are known."""
        found: dict[str, int] = {}
        get, last = self.entries.get, None
        for depth in range(len(hashes), 0, -1):
            names = get(hashes[depth - 1])
            if names is not None and names is not last:
                last = names
                for name in names:
                    if name not in found:
                        found[name] = depth
                if len(found) >= HOLDERS:
                    break
        return found

    def apply(self, decision: Remembered, served: str | None = None) -> None:
        """Keep what a decision leaves behind. `served`: the endpoint that took the request, if not the chosen one."""
        self.turns[decision.model] = self.turns.get(decision.model, 0) + 1
        name = served or decision.chosen
        if name is not None and decision.remember:
            self.hold(decision.remember, name)

    def hold(self, hashes: Sequence[int], name: str) -> None:
        """`name` has read a prompt with these beginnings."""
        entries, alone = self.entries, self._alone.setdefault(name, (name,))
        for key in reversed(hashes):
            names = entries.get(key)
            if names is None:
                entries[key] = alone
                continue
            if names[0] != name:
                entries[key] = (name, *[n for n in names if n != name][: HOLDERS - 1])
            entries.move_to_end(key)
        while len(entries) > self.capacity:
            entries.popitem(last=False)

    def forget(self, name: str) -> None:
        """`name` lost its cache (it was restarted) or left. Takes time in proportion to the entries."""
        for key in [k for k, names in self.entries.items() if name in names]:
            rest = tuple(n for n in self.entries[key] if n != name)
            if rest:
                self.entries[key] = rest
            else:
                del self.entries[key]
        self._alone.pop(name, None)

    def bytes_per_entry(self) -> float:
        """Memory per entry in bytes: the table, its keys and the holder lists (shared lists once). Walks all entries.

        The C linked list of an OrderedDict, 32 bytes an entry, is part of its `sys.getsizeof`."""
        if not self.entries:
            return 0.0
        lists = {id(names): sys.getsizeof(names) for names in self.entries.values()}
        keys = sum(map(sys.getsizeof, self.entries))
        return (sys.getsizeof(self.entries) + keys + sum(lists.values())) / len(self.entries)
