"""Which month a request's money belongs to, and what the ledger says of requests that a stop cut off."""

from __future__ import annotations

import calendar
import time
from functools import lru_cache

from atoll.core.types import Entry

INTERRUPTED = "gateway stopped before this request finished"

DAY = 86_400


def period(now: float) -> int:
    """The UTC month that `now` lies in: year * 12 + month - 1."""
    return _period_of_day(int(now // DAY))


@lru_cache(maxsize=64)
def _period_of_day(day: int) -> int:
    date = time.gmtime(day * DAY)
    return date.tm_year * 12 + date.tm_mon - 1


def month_end(now: float) -> float:
    """When the UTC month of `now` ends."""
    year, month = divmod(period(now) + 1, 12)
    return float(calendar.timegm((year, month + 1, 1, 0, 0, 0)))


def settled_at(entry: Entry) -> float:
    """When the entry reached its final state; its money counts in that month."""
    return entry.created_at + (entry.duration_ms or 0.0) / 1000
