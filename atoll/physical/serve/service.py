"""The policies that are served: promoted, rolled back, stopped, released. Implements `core.ports.Policies`."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from atoll.core.cards import Card
from atoll.core.errors import AtollError, Conflict, Forbidden, InvalidRequest, NotFound, NotInstalled, SetupError
from atoll.core.runs import DIGEST
from atoll.core.session import Latch, token_digest
from atoll.core.types import Key
from atoll.physical.serve.audit import Audit
from atoll.physical.serve.record import Promotion, Record, Records, plain
from atoll.physical.serve.served import Served, load

log = logging.getLogger("atoll.physical")

TASK = "policy"
TICKET_S = 30.0

Find = Callable[[str], Path]


class Catalogue(Protocol):
    """Where models are known by name."""

    @property
    def tiers(self) -> Mapping[str, str]: ...

    def cards(self) -> Mapping[str, Card]: ...

    def offer(self, card: Card) -> None: ...


class Service:
    """`find` tells the folder of an artifact by its digest, or raises NotFound. `refused` tells why what was made last
    under a name is not what is served there."""

    def __init__(self, root: Path, catalogue: Catalogue, find: Find) -> None:
        self.records = Records(root)
        self._catalogue, self._find = catalogue, find
        self._known: dict[str, Record] = {}
        self._stops: dict[str, Latch] = {}
        self._served: dict[str, Served] = {}
        self._failed: dict[str, AtollError] = {}
        self.refused: dict[str, str] = {}
        self._audits: dict[str, Audit] = {}
        self._tickets: dict[str, tuple[Key, float]] = {}
        self._agreed: dict[tuple[str, str], float] = {}
        self._changing, self._writing = asyncio.Lock(), asyncio.Lock()

    async def start(self) -> None:
        """Bring what is promoted into service. One that cannot be is listed with the reason."""
        await asyncio.to_thread(self.records.tidy)
        for name in await asyncio.to_thread(self.records.names):
            try:
                record = self._known[name] = await asyncio.to_thread(self.records.read, name)
                if record.stop is not None:
                    self._stops[name] = record.stop
                self._take_over(await self._load(record))
            except AtollError as error:
                log.error("policy '%s' is not served: %s", name, error.message)
                self._failed[name] = error

    def dismiss(self) -> None:
        """End all sessions; what they drive is told to be safe first."""
        for served in self._served.values():
            served.close("the service ends")

    async def close(self) -> None:
        self.dismiss()
        await asyncio.sleep(0)
        for audit in self._audits.values():
            audit.close()

    def served(self, name: str) -> Served:
        """Raises NotFound, or why it is not served."""
        if (served := self._served.get(name)) is not None:
            return served
        if (error := self._failed.get(name)) is not None:
            raise error
        known = ", ".join(self._served) or "none"
        raise NotFound(f"no policy '{name}' is served; there are: {known}", param="policy", code="policy_not_found")

    def rows(self) -> Sequence[Mapping[str, Any]]:
        return [self._row(name) for name in sorted({*self._known, *self._failed, *self.refused})]

    def refuse(self, name: str, why: str) -> None:
        """Tell `why` in the row of `name`, until something is promoted there."""
        self.refused[name] = why

    async def promote(
        self, name: str, policy: str, report: str, by: Key, uncompared: bool = False
    ) -> Mapping[str, Any]:
        async with self._changing:
            self._check_name(name)
            if not report:
                policy, report = await asyncio.to_thread(self._pair, policy)
            folders = self._folder(policy, "policy"), self._folder(report, "report")
            old = self._known.get(name)
            against = old.promoted.policy if old and name in self._served and not uncompared else None
            version, verdict = await asyncio.to_thread(self.records.admit, name, *folders, against)
            coming = Promotion(version, verdict, by.id, time.time())
            event = "promoted_uncompared" if uncompared else "promoted"
            await self._change(Record(name, coming, self._past(old, coming)), event, by)
            self.refused.pop(name, None)
            return self._row(name)

    async def rollback(self, name: str, by: Key) -> Mapping[str, Any]:
        async with self._changing:
            old = self._record(name)
            if not old.past:
                raise Conflict(f"there was no version of '{name}' before {old.promoted.policy[:12]}")
            await self._change(replace(old, promoted=old.past[-1], past=old.past[:-1]), "rolled_back", by)
            return self._row(name)

    async def stop(self, name: str, by: Key, reason: str) -> str:
        """What moves is told at once; that it stays stopped, also over a restart, is on disk when this returns."""
        token = self.halt(name, by, reason)
        await self.keep(name)
        return token

    async def reset(self, name: str, token: str, by: Key) -> None:
        self.free(name, token, by)
        await self.keep(name)

    def halt(self, name: str, by: Key, reason: str) -> str:
        """Stopped when this returns, on disk after `keep`. The token; "" where another has it."""
        self._record(name)
        if name in self._stops and by.role != "admin":
            return ""
        token = secrets.token_hex(16)
        latch = self._stops[name] = Latch(token_digest(token), by.id, reason, time.time())
        self._agreed = {held: until for held, until in self._agreed.items() if held[0] != name}
        if (served := self._served.get(name)) is not None:
            served.stop(latch)
        self._audit(name).write("stopped", by.id, reason=reason)
        return token

    def free(self, name: str, token: str, by: Key) -> None:
        """The end of a stop, on disk after `keep`. Raises Forbidden, Conflict."""
        self._record(name)
        latch = self._stops.get(name)
        if latch is None:
            raise Conflict(f"policy '{name}' is not stopped")
        if not latch.opens(token):
            self._audit(name).write("reset_refused", by.id)
            raise Forbidden("this is not the token that the stop gave; an admin who stops again gets a new one")
        self._audit(name).write("released", by.id)
        del self._stops[name]
        if (served := self._served.get(name)) is not None:
            served.release(token)

    async def keep(self, name: str) -> None:
        """What holds now is on disk when this returns."""
        async with self._writing:
            record = replace(self._known[name], stop=self._stops.get(name))
            await asyncio.to_thread(self.records.write, record)

    def agree(self, name: str, by: Key, seconds: float) -> float:
        """The holder of a key agrees that the policy moves what its tool moves, until the time returned (0 seconds: no
        longer). A stop ends it."""
        served = self.served(name)
        until = self._agreed[name, by.id] = time.time() + seconds
        served.audit.write("agreed", by.id, seconds=seconds)
        return until

    def agreed(self, name: str, by: Key) -> bool:
        return self._agreed.get((name, by.id), 0.0) > time.time()

    def ticket(self, by: Key) -> str:
        """Opens one session in the name of `by`, within half a minute."""
        now = time.time()
        self._tickets = {ticket: held for ticket, held in self._tickets.items() if held[1] > now}
        ticket = secrets.token_urlsafe(32)
        self._tickets[ticket] = by, now + TICKET_S
        return ticket

    def redeem(self, ticket: str) -> Key | None:
        key, until = self._tickets.pop(ticket, (None, 0.0))
        return key if until > time.time() else None

    def _past(self, old: Record | None, coming: Promotion) -> tuple[Promotion, ...]:
        """What a rollback from `coming` goes back to: not to the same policy. Raises Conflict where it is promoted."""
        if old is None or old.promoted.policy != coming.policy:
            return (*old.past, old.promoted) if old else ()
        if old.promoted.report == coming.report and old.name in self._served:
            message = f"version {coming.policy[:12]} of '{old.name}' is promoted already"
            raise Conflict(message, code="already_promoted")
        return old.past

    async def _change(self, record: Record, event: str, by: Key) -> None:
        """Serve another version. The old one goes on where the new one cannot be loaded or kept; so do its sessions
        where the policy is the same, judged anew."""
        served, old = await self._load(record), self._known.get(record.name)
        self._known[record.name] = record
        try:
            await self.keep(record.name)
        except SetupError:
            self._known.pop(record.name)
            if old is not None:
                self._known[record.name] = old
            raise
        promoted = record.promoted
        self._audit(record.name).write(event, by.id, version=promoted.policy, report=promoted.report)
        if (now := self._served.get(record.name)) is None or now.version != served.version:
            self._take_over(served)

    async def _load(self, record: Record) -> Served:
        name, promoted = record.name, record.promoted
        folder = await asyncio.to_thread(self.records.checked, name, promoted)
        return await asyncio.to_thread(load, name, promoted.policy, folder, self._audit(name))

    def _take_over(self, served: Served) -> None:
        old = self._served.pop(served.name, None)
        if old is not None:
            old.close(f"another version is promoted, {served.version[:12]}: connect again")
        self._failed.pop(served.name, None)
        served.latch = self._stops.get(served.name)
        self._served[served.name] = served
        self._catalogue.offer(_card(served))

    def _check_name(self, name: str) -> None:
        card = self._catalogue.cards().get(name)
        if name in self._catalogue.tiers or (card is not None and card.task != TASK):
            raise Conflict(f"'{name}' is the name of a model already", param="name")

    def _record(self, name: str) -> Record:
        if name not in self._known:
            raise NotFound(f"there is no policy '{name}' here", param="policy", code="policy_not_found")
        return self._known[name]

    def _audit(self, name: str) -> Audit:
        if name not in self._audits:
            self._audits[name] = Audit(self.records.root / name / "audit.jsonl")
        return self._audits[name]

    def _pair(self, service: str) -> tuple[str, str]:
        """Digests of the policy and of the report that a service names."""
        try:
            told = json.loads((self._folder(service, "service") / "service.json").read_bytes())
            return str(told["policy"]), str(told["report"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InvalidRequest("'policy' without a 'report' must be a service", param="policy") from None

    def _folder(self, given: str, what: str) -> Path:
        folder = self._find(given) if DIGEST.fullmatch(given) else Path(given)
        try:
            there = folder.is_absolute() and (folder / f"{what}.json").is_file()
        except OSError:
            there = False
        if not there:
            message = f"'{what}' is neither the digest of an artifact nor a folder here with {what}.json: {given}"
            raise NotFound(message, param=what)
        return folder

    def _row(self, name: str) -> dict[str, Any]:
        record, served, failed = self._known.get(name), self._served.get(name), self._failed.get(name)
        state = "missing" if isinstance(failed, NotInstalled) else "ready" if served else "failed"
        stop = self._stops.get(name)
        return {
            "id": name,
            "state": "stopped" if stop and served else state,
            "detail": " / ".join(filter(None, (failed.message if failed else "", self.refused.get(name, "")))),
            "promoted": asdict(record.promoted) if record else None,
            "past": [asdict(each) for each in record.past] if record else [],
            "stop": {"by": stop.by, "reason": stop.reason, "at": stop.at} if stop else None,
            "sessions": len(served.lines) if served else 0,
            "answered": served.answered if served else 0,
            "manifest": plain(asdict(served.manifest)) if served else None,
        }


def _card(served: Served) -> Card:
    manifest = served.manifest
    title = f"Policy for {manifest.task}, {manifest.rate_hz:g} Hz"
    note = "A robot policy: it takes observations at /atoll/v1/policies/{id}/act, not messages."
    return Card(served.name, title, TASK, TASK, note, input=(), output=())
