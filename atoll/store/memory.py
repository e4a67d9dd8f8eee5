"""Everything in this process's memory: for tests, and for a gateway that should keep nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from atoll.core.errors import Conflict, InvalidRequest, NotFound
from atoll.core.leases import Lent, Moment, Pool, Recall, Report, Stale, Want, grant, record
from atoll.core.places import INTRODUCED_S, Machine, RegionStatus
from atoll.core.quota import WINDOW, Account, Reject, Slot
from atoll.core.types import Entry, Key, Limits
from atoll.store.months import INTERRUPTED, month_end, period, settled_at
from atoll.store.responses import surplus


class Written:
    """The awaitable of a record that needs no disk."""

    __slots__ = ()

    def __await__(self):
        return iter(())


class MemoryLedger:
    def __init__(self) -> None:
        self._rows: dict[str, Entry] = {}
        self._written = Written()

    def record(self, entry: Entry) -> Written:
        known = self._rows.get(entry.id)
        if known and known.created_at != entry.created_at:
            entry = entry._replace(created_at=known.created_at)
        self._rows[entry.id] = entry
        return self._written

    async def recover(self, now: float) -> dict[str, Account]:
        month, oldest = period(now), int(now) - WINDOW
        spent: dict[str, int] = {}
        slots: dict[str, dict[int, Slot]] = {}
        for row in list(self._rows.values()):
            if row.status == "open":
                self._rows[row.id] = row._replace(status="interrupted", error=INTERRUPTED)
            if row.cost and period(settled_at(row)) == month:
                spent[row.key_id] = spent.get(row.key_id, 0) + row.cost
            if row.created_at >= oldest:
                second, used = math.floor(row.created_at), slots.setdefault(row.key_id, {})
                slot = used.get(second, Slot(second))
                tokens = slot.tokens + row.usage.input + row.usage.output
                used[second] = Slot(second, slot.requests + 1, tokens)
        return {
            key: Account(month, spent=spent.get(key, 0), slots=tuple(s for _, s in sorted(slots.get(key, {}).items())))
            for key in spent.keys() | slots.keys()
        }

    async def entries(
        self,
        *,
        key_id: str | None = None,
        before: float | None = None,
        before_id: str | None = None,
        limit: int = 100,
    ) -> Sequence[Entry]:
        rows = [
            e
            for e in self._rows.values()
            if key_id in (None, e.key_id)
            and (before is None or e.created_at < before or (before_id and e.created_at == before and e.id < before_id))
        ]
        return sorted(rows, key=lambda e: (e.created_at, e.id), reverse=True)[:limit]

    async def entry(self, id: str) -> Entry | None:
        return self._rows.get(id)

    async def usage(self, *, since: float, until: float, step: float, key_id: str | None = None) -> Sequence[dict]:
        sums: dict[tuple, dict] = {}
        for e in self._rows.values():
            if key_id not in (None, e.key_id) or not since <= e.created_at < until:
                continue
            place = {"start": math.floor(e.created_at / step) * step, "key_id": e.key_id, "model": e.model}
            new = place | dict.fromkeys(("requests", "failed", "input", "output", "cached", "cost"), 0)
            bucket = sums.setdefault(tuple(place.values()), new)
            failed = e.status in ("failed", "interrupted")
            for name, n in (*e.usage._asdict().items(), ("cost", e.cost), ("requests", 1), ("failed", int(failed))):
                bucket[name] += n
        return [sums[place] for place in sorted(sums)]


class MemoryKeys:
    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}

    async def add(self, key: Key) -> None:
        if key.id in self._keys or self._shares_digest(key):
            raise Conflict(f"a key with id '{key.id}' or the same secret exists already")
        self._keys[key.id] = key

    async def replace(self, key: Key) -> None:
        if key.id not in self._keys:
            raise NotFound(f"there is no key '{key.id}'")
        if self._shares_digest(key):
            raise Conflict(f"another key has the same secret as '{key.id}'")
        self._keys[key.id] = key

    async def all(self) -> Sequence[Key]:
        return sorted(self._keys.values(), key=lambda k: (k.created_at, k.id))

    def _shares_digest(self, key: Key) -> bool:
        return any(k.digest == key.digest and k.id != key.id for k in self._keys.values())


class MemoryPlaces:
    def __init__(self) -> None:
        self._places: dict[str, tuple[RegionStatus, float]] = {}
        self._region = ""
        self._joined: dict[str, Machine] = {}
        self._introduced: dict[str, float] = {}

    async def put(self, region_id: str, status: RegionStatus, at: float) -> None:
        if region_id not in self._places or self._places[region_id][1] <= at:
            self._places[region_id] = (status, at)

    async def all(self) -> Mapping[str, tuple[RegionStatus, float]]:
        return dict(sorted(self._places.items()))

    async def stands_in(self, region: str) -> str:
        self._region = self._region or region
        return self._region

    async def join(self, region_id: str, machine: Machine) -> None:
        self._joined[region_id] = machine

    async def part(self, region_id: str) -> None:
        self._joined.pop(region_id, None)

    async def joined(self) -> Mapping[str, Machine]:
        return dict(self._joined)

    async def introduce(self, authority: str, at: float) -> None:
        known = {told: when for told, when in self._introduced.items() if at - when < INTRODUCED_S}
        self._introduced = {**known, authority: at}

    async def introduced(self) -> Mapping[str, float]:
        return dict(self._introduced)


class MemoryLeases:
    """One gateway only: the pools die with it."""

    def __init__(self) -> None:
        self.holder = "memory"
        self._pools: dict[str, Pool] = {}

    async def grant(self, key_id: str, limits: Limits, want: Want) -> Lent | Reject | Recall | Stale:
        when = _moment()
        pool = self._pools.get(key_id) or Pool(when.period)
        self._pools[key_id], answer = grant(pool, limits, want, when)
        return answer

    async def record(self, key_id: str, reports: Sequence[Report]) -> None:
        when = _moment()
        pool = self._pools.get(key_id) or Pool(when.period)
        for told in reports:
            try:
                pool = record(pool, told, when)
            except ValueError as error:
                raise InvalidRequest(str(error)) from None
        self._pools[key_id] = pool


def _moment() -> Moment:
    now = time.time()
    return Moment(now, period(now), month_end(now))


class MemoryResponses:
    def __init__(self) -> None:
        self._bodies: dict[str, tuple[str, bytes, float]] = {}

    async def put(self, id: str, key_id: str, body: dict[str, Any], expires_at: float) -> None:
        if id in self._bodies and self._bodies[id][0] != key_id:
            raise Conflict(f"the response id '{id}' is taken")
        self._bodies[id] = (key_id, orjson.dumps(body), expires_at)
        own = [(expires, id, len(raw)) for id, (owner, raw, expires) in self._bodies.items() if owner == key_id]
        for old in surplus((id, size) for _, id, size in sorted(own, reverse=True)):
            del self._bodies[old]

    async def get(self, id: str, key_id: str, now: float) -> dict[str, Any]:
        owner, body, expires_at = self._bodies.get(id, ("", b"", 0.0))
        if owner != key_id or expires_at <= now:
            raise _missing(id)
        return orjson.loads(body)

    async def delete(self, id: str, key_id: str) -> None:
        if self._bodies.get(id, ("",))[0] != key_id:
            raise _missing(id)
        del self._bodies[id]

    async def purge(self, now: float) -> int:
        expired = [id for id, (_, _, expires_at) in self._bodies.items() if expires_at <= now]
        for id in expired:
            del self._bodies[id]
        return len(expired)


def _missing(id: str) -> NotFound:
    return NotFound(f"there is no stored response '{id}'", param="previous_response_id")
