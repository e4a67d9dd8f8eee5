"""What a region says on an open stream while it has no token: that it lives, and how long its engine gave nothing."""

from __future__ import annotations

import re

EVERY = 0.5
_SILENT = re.compile(rb"^: silent (\d{1,6}(?:\.\d+)?)$", re.MULTILINE)


def beat(silent: float) -> bytes:
    """A comment of the stream. `silent`: seconds since the request's turn came in which its engine gave nobody
    anything."""
    return b": silent %.1f\n\n" % silent if silent else b": here\n\n"


def silence(data: bytes) -> float:
    """The seconds that the last beat in `data` tells."""
    told = _SILENT.findall(data)
    return float(told[-1]) if told else 0.0
