"""Who moved what, when, which limit was met, which stop was pulled: a file of JSON lines that only grows."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import orjson

log = logging.getLogger("atoll.physical")


class Audit:
    """Lines are written at once, each in one piece, so that several writers may share the file."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab", buffering=0, opener=_private)  # noqa: SIM115

    def write(self, event: str, by: str, **facts: Any) -> None:
        """`by` is the id of the key whose holder did it. A line that cannot be written goes to the log."""
        line = orjson.dumps({"at": time.time(), "event": event, "by": by, **facts}) + b"\n"
        try:
            self._file.write(line)
        except (OSError, ValueError) as error:
            log.error("%s: %s; the line was %s", self.path, error, line.decode().strip())

    def close(self) -> None:
        self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
