"""How endpoints fare, request by request: who answers slowly, stalls or errs far more than its peers."""

from __future__ import annotations

from atoll.core.health import Ejected, Fault, Outcome, Thresholds, Vitals, eject, examine, stall_after
from atoll.core.view import Ticket

LIMITS = Thresholds(stall_least=10.0, first_least=20.0)
"""Where regions share cores, one that reads long prompts makes no tokens for others for seconds."""


class Watch:
    """The endpoints of one card. Decisions are `core.health`'s."""

    def __init__(self) -> None:
        self._vitals: dict[str, Vitals] = {}
        self._ejected: dict[str, Ejected] = {}

    def examine(self, ticket: Ticket, tokens: int, failed: bool, now: float) -> Fault | None:
        """What a request that is over says against its endpoint."""
        name, first = ticket.spot.name, ticket.first_at
        outcome = Outcome(
            "died" if failed else None,
            None if first is None else first - ticket.began,
            tokens,
            0.0 if first is None else now - first,
        )
        peers = {other: vitals for other, vitals in self._vitals.items() if other != name}
        self._vitals[name], fault = examine(self._vitals.get(name, Vitals()), outcome, peers, now)
        return fault

    def eject(self, now: float) -> dict[str, Ejected]:
        """Who is newly left out, and until when."""
        before = self._ejected
        self._ejected = eject(self._vitals, before, now)
        return {n: e for n, e in self._ejected.items() if now < e.until and before.get(n) != e}

    def stalled(self, name: str, silent: float) -> bool:
        """Whether `silent` seconds without a token are too many in the middle of an answer of this endpoint."""
        return silent > stall_after(self._vitals.get(name, Vitals()), True, LIMITS)

    def hangs(self, ticket: Ticket, silent: float) -> bool:
        """Whether `silent` seconds in which the engine gave nothing are too many before the first token."""
        spot = ticket.spot
        prefill = spot.base + ticket.tokens * spot.per_token
        return silent > stall_after(self._vitals.get(spot.name, Vitals()), False, LIMITS, ticket.tokens, prefill)

    def forget(self, name: str) -> None:
        self._vitals.pop(name, None)
        self._ejected.pop(name, None)
