"""How far a step is, and its curves: one JSON object a line in a file that only grows, and slower the longer it is."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atoll.core.runs import Cancelled

EVERY_S = 0.2
LINES_BEFORE_SLOWER = 1000
TAIL = 8192


class Figures:
    """A Reporter that appends to a file. Calls that come faster than it writes are told by the next one that is
    written; after each thousand lines it writes half as often, so that a week's work stays within megabytes."""

    def __init__(self, file: int, cancelled: Callable[[], bool], clock: Callable[[], float] = time.time):
        self._file, self._cancelled, self._clock = file, cancelled, clock
        self._pending: dict[str, Any] | None = None
        self._lines, self._last = 0, -math.inf

    def progress(self, done: float, total: float, **figures: float) -> None:
        if self._cancelled():
            raise Cancelled("the run was cancelled")
        now = self._clock()
        values = {name: float(v) for name, v in figures.items() if math.isfinite(v)}
        earlier = self._pending["figures"] if self._pending else {}
        told = {"at": round(now, 3), "done": float(done), "total": float(total), "figures": {**earlier, **values}}
        self._pending = told
        if now - self._last >= EVERY_S * 2 ** (self._lines // LINES_BEFORE_SLOWER):
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if self._pending is None:
            return
        os.write(self._file, json.dumps(self._pending, separators=(",", ":")).encode() + b"\n")
        self._last, self._lines, self._pending = self._pending["at"], self._lines + 1, None


@contextmanager
def figures(path: Path, cancelled: Callable[[], bool]) -> Iterator[Figures]:
    """A reporter that goes on in the file at `path`, also after a line that was cut off."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")
        reporter = Figures(file, cancelled)
        yield reporter
        reporter.flush()
    finally:
        os.close(file)


def read(path: Path, offset: int = 0) -> tuple[list[Mapping[str, Any]], int]:
    """The whole lines from `offset` on, and where the next ones will begin."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return list(_parsed(whole)), offset + len(whole)


def latest(path: Path) -> Mapping[str, Any] | None:
    """The last whole line, with the latest values of figures that the lines before it told."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = list(_parsed(file.read()))
    except FileNotFoundError:
        return None
    known = {name: value for line in lines for name, value in line["figures"].items()}
    return {**lines[-1], "figures": known} if lines else None


def _parsed(data: bytes) -> Iterator[Mapping[str, Any]]:
    for line in data.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and "done" in told:
            yield told
