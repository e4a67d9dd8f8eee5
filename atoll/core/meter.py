"""What a request costs."""

from __future__ import annotations

from atoll.core.types import NANO, Price, Usage


def meter(usage: Usage, price: Price) -> int:
    """Nanodollars for `usage`. Cached input units are charged at the cached price instead of the input price."""
    fresh = usage.input - usage.cached
    return fresh * price.input + usage.cached * price.cached + usage.output * price.output


def dollars(nano: int) -> float:
    """For display only; never add these up."""
    return nano / NANO
