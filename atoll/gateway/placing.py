"""Where requests may go, and what this gateway may keep of them, by the rules of their keys and their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from atoll.core.errors import Forbidden, InvalidRequest
from atoll.core.places import Region, Residency
from atoll.core.residency import ANYWHERE, PREFIXES, allowed, parse_rule, render, requested
from atoll.core.types import Grade, Key

FIELDS = frozenset({"residency", "data_residency", "recovery"})
GRADES = ("exact", "fast", "hot", "none")


@dataclass(frozen=True, slots=True)
class Place:
    """The rule of one request. `allowed` region ids may process it, None for all; `waits` for one that can. `recovery`
    is how it goes on when it breaks, None as its key says."""

    rule: str = ""
    allowed: frozenset[str] | None = None
    stored_in: str = ""
    waits: bool = False
    recovery: Grade | None = None


class Placing:
    """`regions` by id, as they are now; `home` is where this gateway and its database stand; `traces` is the region
    of the collector that spans are sent to, empty where it is not known."""

    def __init__(self, regions: Mapping[str, Region], home: str, traces: str = "") -> None:
        self.regions = regions
        self.home = home
        self.traces = traces
        self._known: dict[Residency, Place] = {}

    def of(self, key: Key) -> Place:
        """The key's own rule. Raises Forbidden where nothing may be stored here."""
        rule = key.policy.residency
        return self._known.get(rule) or self._place(rule)

    def take(self, key: Key, body: dict[str, Any]) -> tuple[Place, dict[str, Any]]:
        """The rule of a request, and its body without what said it. Raises InvalidRequest or Forbidden."""
        model = body.get("model")
        prefixed = isinstance(model, str) and model.partition(".")[0] in PREFIXES
        if not prefixed and FIELDS.isdisjoint(body):
            return self.of(key), body
        rule, name = requested(key.policy.residency, body, self.regions)
        rest = {field: value for field, value in body.items() if field not in FIELDS}
        grade = body.get("recovery")
        if grade not in (None, *GRADES):
            raise InvalidRequest(f"recovery must be one of {', '.join(GRADES)}", param="recovery")
        place = self._known.get(rule) or self._place(rule)
        return replace(place, recovery=grade), {**rest, "model": name} if prefixed else rest

    def may_trace(self, rule: str) -> bool:
        """Whether a span may be kept of a request under this rule, where the collector stands."""
        ruled = parse_rule(rule or ANYWHERE)
        return not ruled.store_in or self.traces in allowed(ruled, self.regions).store_in

    def _place(self, rule: Residency) -> Place:
        sets = allowed(rule, self.regions)
        if self.home not in sets.store_in:
            raise Forbidden(
                f"this gateway stores in {self.home}, which the rule does not allow ({render(rule)}); "
                "ask a gateway in a region that it does",
                param="residency.store_in",
                code="data_residency_mismatch",
            )
        places = sets.process_in if rule.process_in else None
        place = Place(render(rule), places, self.home, rule.on_unavailable == "queue")
        if len(self._known) < 1024:
            self._known[rule] = place
        return place
