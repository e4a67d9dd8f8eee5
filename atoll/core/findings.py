"""What a look at an installation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """`missing` is something that comes by itself or is optional; `broken` keeps Atoll from working.
    `advice` says what to do about it."""

    name: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    advice: str = ""
