"""The nouns: keys, limits, usage, prices, endpoints and ledger entries.

Money is an integer number of nanodollars (1e-9 US dollar), so sums are exact: a price of $0.15 per
million tokens is 150 nanodollars per token. Times are seconds since the Unix epoch, as floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from atoll.core.places import Residency

NANO = 1_000_000_000

Role = Literal["admin", "user"]
Status = Literal["open", "done", "failed", "cancelled", "interrupted"]
Grade = Literal["exact", "fast", "hot", "none"]
Mismatch = Literal["fail", "continue", "restart"]
BY_TEXT = "-text"
"""Ends a grade whose check could compare text alone, as the engine tells no token ids."""


@dataclass(frozen=True, slots=True)
class Price:
    """Nanodollars per unit. The unit is a token for text, a second of audio heard, a character spoken."""

    input: int = 0
    output: int = 0
    cached: int = 0


class Usage(NamedTuple):
    """Units consumed. `cached` of the `input` units were served from a prefix cache."""

    input: int = 0
    output: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may do; None means no limit. `budget_per_month` is in nanodollars, per UTC month."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    budget_per_month: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How a key's requests are treated. `recovery`: how a broken stream goes on elsewhere; `on_mismatch`: what happens
    where only other weights are left. `priority`: 0 (batch) to 9; higher goes first, none starves."""

    residency: Residency = Residency()
    recovery: Grade = "exact"
    on_mismatch: Mismatch = "fail"
    priority: int = 5


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. The secret itself is never stored: `digest` is its SHA-256 in hex."""

    id: str
    name: str
    role: Role
    digest: str
    hint: str
    limits: Limits = Limits()
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    policy: Policy = Policy()

    def usable(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place that speaks the OpenAI wire format. `url` has no trailing slash and no `/v1`. A `station` is Atoll's own:
    it queues, tells token ids and reports errors as they were raised. `digest` names the weights, if they are known."""

    name: str
    url: str
    region: str
    token: str = ""
    station: bool = False
    digest: str = ""


class Entry(NamedTuple):
    """One ledger row: one request, from admission (`open`) to its final status.

    `region` processed it last. `path` lists every region that processed any of it, in order, with the output tokens
    of each (`eu-central-1:120 eu-west-1:80`); those that were asked, and made none that was sent, come first, with 0.
    `stored_in` is the region that holds this row; `rule` is the residency rule it was served under
    (`core.residency.render`), `grade` how it was recovered, if it was."""

    id: str
    key_id: str
    model: str
    region: str
    route: str
    created_at: float
    status: Status = "open"
    usage: Usage = Usage()
    cost: int = 0
    http_status: int = 0
    first_token_ms: float | None = None
    duration_ms: float | None = None
    error: str | None = None
    path: str = ""
    stored_in: str = ""
    rule: str = ""
    grade: str = ""
