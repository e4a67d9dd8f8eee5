"""How endpoints fare, request by request: who answers slowly, stalls or errs far more than its peers."""

from __future__ import annotations

from atoll.core.health import Ejected, Fault, Outcome, Thresholds, Vitals, eject, examine, slow, stall_after
from atoll.core.view import Ticket

LIMITS = Thresholds(stall_least=10.0, first_least=20.0)
"""Where regions share cores, one that reads long prompts makes no tokens for others for seconds."""

LAG_S = 5.0
LAGS = Thresholds(recent=2 * LAG_S)


class Watch:
    """The endpoints of one card. Decisions are `core.health`'s."""

    def __init__(self) -> None:
        self._vitals: dict[str, Vitals] = {}
        self._under_way: dict[str, Vitals] = {}
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
        self._vitals[name], fault = examine(self._of(name), outcome, self._peers(name), now)
        return fault

    def lags(self, name: str, tokens: int, seconds: float, now: float) -> bool:
        """Whether the last `tokens` of an answer under way, in `seconds`, came too slowly, beside those of answers that
        are under way elsewhere: what has ended was maybe made before a burst that slows all."""
        stretch = Outcome(None, None, tokens, seconds)
        self._under_way[name] = Vitals(gap=stretch.gap, at=now)
        others = {other: vitals for other, vitals in self._under_way.items() if other != name}
        return slow(self._of(name), stretch, others, now, LAGS)

    def _of(self, name: str) -> Vitals:
        return self._vitals.get(name, Vitals())

    def _peers(self, name: str) -> dict[str, Vitals]:
        return {other: vitals for other, vitals in self._vitals.items() if other != name}

    def eject(self, now: float) -> dict[str, Ejected]:
        """Who is newly left out, and until when."""
        before = self._ejected
        self._ejected = eject(self._vitals, before, now)
        return {n: e for n, e in self._ejected.items() if now < e.until and before.get(n) != e}

    def stalled(self, name: str, silent: float) -> bool:
        """Whether `silent` seconds without a token are too many in the middle of an answer of this endpoint."""
        return silent > stall_after(self._of(name), True, LIMITS)

    def hangs(self, ticket: Ticket, silent: float) -> bool:
        """Whether `silent` seconds in which the engine gave nothing are too many before the first token."""
        spot = ticket.spot
        prefill = spot.base + ticket.tokens * spot.per_token
        return silent > stall_after(self._of(spot.name), False, LIMITS, ticket.tokens, prefill)

    def forget(self, name: str) -> None:
        self._vitals.pop(name, None)
        self._under_way.pop(name, None)
        self._ejected.pop(name, None)
