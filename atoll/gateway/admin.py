"""Everything but the model calls: models, keys, usage, requests, regions, status, health."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from atoll import __version__
from atoll.core.errors import AtollError, Conflict, InvalidRequest, NotFound
from atoll.core.meter import dollars
from atoll.core.ports import Keys, Library, Policies
from atoll.core.residency import allowed
from atoll.core.types import Entry, Key, Limits, Policy
from atoll.gateway.accounts import digest
from atoll.gateway.admin_schemas import KeyChange, NewKey, NewModel, PolicyBody, TierChange
from atoll.gateway.asgi import Gateway, require_admin
from atoll.gateway.errors import error_body, invalid
from atoll.gateway.http import parse_json
from atoll.gateway.render import render_entry, render_key, render_model

MAX_ADMIN_BODY = 1024 * 1024
MAX_WATCHERS = 64


def new_key(name: str, role: Any, limits: Limits, expires_in: float | None = None) -> tuple[Key, str]:
    """A key and its secret, which exists nowhere else."""
    secret, now = "sk-atoll-" + secrets.token_urlsafe(32), time.time()
    expires = None if expires_in is None else now + expires_in
    hint = f"sk-atoll-…{secret[-4:]}"
    return Key("key_" + secrets.token_hex(8), name, role, digest(secret), hint, limits, now, expires), secret


@dataclass(slots=True)
class Admin:
    """The handlers' shared parts."""

    gateway: Gateway
    keys: Keys
    library: Library
    store_kind: str
    started_at: float
    policies: Policies | None = None
    watchers: set[asyncio.Queue[Entry | None]] = field(default_factory=set)

    def dismiss(self) -> None:
        """End the streams of live requests, which would otherwise keep a stopping server for its whole drain time."""
        for queue in self.watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def routes(self) -> list[Route]:
        table: list[tuple[str, str, Any]] = [
            ("GET", "/v1/models", self.list_models),
            ("GET", "/v1/models/{id:path}", self.get_model),
            ("GET", "/atoll/v1/me", self.me),
            ("GET", "/atoll/v1/status", self.status),
            ("GET", "/atoll/v1/keys", self.list_keys),
            ("POST", "/atoll/v1/keys", self.create_key),
            ("PATCH", "/atoll/v1/keys/{id}", self.change_key),
            ("DELETE", "/atoll/v1/keys/{id}", self.revoke_key),
            ("GET", "/atoll/v1/usage", self.usage),
            ("GET", "/atoll/v1/requests", self.requests),
            ("GET", "/atoll/v1/requests/live", self.live),
            ("GET", "/atoll/v1/catalogue", self.catalogue),
            ("POST", "/atoll/v1/models", self.add_model),
            ("DELETE", "/atoll/v1/models/{id}", self.remove_model),
            ("PUT", "/atoll/v1/tiers/{tier}", self.set_tier),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in table]

    def caller(self, request: Request, admin: bool = False) -> Key:
        key = self.gateway.identify(request.scope, lambda name: request.headers.get(name.decode()))
        if admin:
            require_admin(key)
        return key

    async def list_models(self, request: Request) -> Response:
        self.caller(request)
        return reply({"object": "list", "data": self._models()})

    async def get_model(self, request: Request) -> Response:
        self.caller(request)
        name = request.path_params["id"]
        for model in self._models():
            if model["id"] == name:
                return reply(model)
        self.gateway.exchange.models.resolve(name)
        raise NotFound(f"model '{name}' does not exist here", param="model", code="model_not_found")

    def _models(self) -> list[dict[str, Any]]:
        models, states, created = self.gateway.exchange.models, self.library.states(), int(self.started_at)
        tiers = [(tier, models.resolve(card)) for tier, card in models.tiers.items() if card in models.cards()]
        listed = [render_model(c, states.get(c.id, {}), created) for c in models.cards().values()]
        policies = {row["id"]: row for row in self.policies.rows()} if self.policies else {}
        for model in listed:
            if (row := policies.get(model["id"])) is not None:
                model |= {name: row[name] for name in ("state", "manifest", "promoted")}
        return [*(render_model(c, states.get(c.id, {}), created, tier) for tier, c in tiers), *listed]

    async def me(self, request: Request) -> Response:
        key = self.caller(request)
        account = self.gateway.exchange.accounts.account(key.id)
        budget = key.limits.budget_per_month
        month = {
            "spent": dollars(account.spent),
            "reserved": dollars(account.held),
            "budget": None if budget is None else dollars(budget),
        }
        return reply({"key": render_key(key, account.spent), "month": month})

    async def status(self, request: Request) -> Response:
        self.caller(request)
        now = time.time()
        result = {
            "version": __version__,
            "pid": os.getpid(),
            "started_at": self.started_at,
            "uptime_s": now - self.started_at,
            "store": self.store_kind,
            "running": len(self.gateway.exchange.running),
            "models": [{"id": name, **value} for name, value in self.library.states().items()],
        }
        return reply(result)

    async def list_keys(self, request: Request) -> Response:
        self.caller(request, admin=True)
        accounts = self.gateway.exchange.accounts
        keys = sorted(accounts.everyone(), key=lambda k: k.created_at)
        return reply({"data": [render_key(k, accounts.account(k.id).spent) for k in keys]})

    async def create_key(self, request: Request) -> Response:
        self.caller(request, admin=True)
        wanted = await parse(request, NewKey)
        key, secret = new_key(wanted.name, wanted.role, wanted.limits.limits(), wanted.expires_in_s)
        key = replace(key, policy=self._policy(wanted, key.policy))
        await self.keys.add(key)
        self.gateway.exchange.accounts.put(key)
        return reply({**render_key(key, 0), "secret": secret}, 201)

    async def change_key(self, request: Request) -> Response:
        self.caller(request, admin=True)
        change = await parse(request, KeyChange)
        key = self._key(request.path_params["id"])
        key = replace(key, name=change.name or key.name, policy=self._policy(change, key.policy))
        if change.limits is not None:
            given = change.limits.model_fields_set
            wanted = change.limits.limits()
            key = replace(key, limits=replace(key.limits, **{name: getattr(wanted, name) for name in given}))
        return reply(await self._put(key))

    async def revoke_key(self, request: Request) -> Response:
        caller = self.caller(request, admin=True)
        key = self._key(request.path_params["id"])
        if key.id == caller.id:
            raise Conflict("a key cannot revoke itself; use another admin key or the command line")
        return reply(await self._put(replace(key, revoked_at=key.revoked_at or time.time())))

    def _policy(self, wanted: PolicyBody, old: Policy) -> Policy:
        """Raises InvalidRequest where the residency names a place that is not known."""
        policy = wanted.over(old)
        allowed(policy.residency, self.gateway.exchange.placing.regions)
        return policy

    def _key(self, key_id: str) -> Key:
        for key in self.gateway.exchange.accounts.everyone():
            if key.id == key_id:
                return key
        raise NotFound(f"there is no key '{key_id}'", param="id", code="key_not_found")

    async def _put(self, key: Key) -> dict[str, Any]:
        await self.keys.replace(key)
        accounts = self.gateway.exchange.accounts
        accounts.put(key)
        return render_key(key, accounts.account(key.id).spent)

    async def usage(self, request: Request) -> Response:
        key = self.caller(request)
        now = time.time()
        until = number(request, "until", now)
        since = number(request, "since", until - 86400)
        step = number(request, "step", 3600.0)
        if step < 60 or not 0 < until - since <= 2000 * step:
            raise InvalidRequest("step must be at least 60 and since..until at most 2000 steps", param="step")
        scope = self._scope(request, key)
        rows = await self.gateway.exchange.ledger.usage(since=since, until=until, step=step, key_id=scope)
        return reply({"step": step, "data": [{**row, "cost": dollars(row["cost"])} for row in rows]})

    async def requests(self, request: Request) -> Response:
        key = self.caller(request)
        limit = int(number(request, "limit", 100))
        if not 1 <= limit <= 1000:
            raise InvalidRequest("limit must be between 1 and 1000", param="limit")
        scope = self._scope(request, key)
        rows = await self.gateway.exchange.ledger.entries(key_id=scope, limit=limit, **page_after(request))
        after = following(rows[-1]) if len(rows) == limit else None
        return reply({"data": [render_entry(e) for e in rows], "next": after})

    def _scope(self, request: Request, key: Key) -> str | None:
        """The key whose rows may be seen: any that an admin asks for, a user's own otherwise."""
        wanted = request.query_params.get("key_id") or None
        return wanted if key.role == "admin" else key.id

    async def live(self, request: Request) -> Response:
        key = self.caller(request)
        exchange = self.gateway.exchange
        if len(exchange.observers) >= MAX_WATCHERS:
            raise Conflict(f"there are {MAX_WATCHERS} watchers already; close a console")
        queue: asyncio.Queue[Entry | None] = asyncio.Queue(maxsize=1000)

        def observe(entry: Entry) -> None:
            if (key.role == "admin" or entry.key_id == key.id) and not queue.full():
                queue.put_nowait(entry)

        async def events() -> AsyncIterator[bytes]:
            exchange.observers.append(observe)
            self.watchers.add(queue)
            try:
                yield b": ready\n\n"
                while True:
                    try:
                        async with asyncio.timeout(15):
                            entry = await queue.get()
                    except TimeoutError:
                        yield b": ping\n\n"
                        continue
                    if entry is None:
                        return
                    yield b"event: request\ndata: " + orjson.dumps(render_entry(entry)) + b"\n\n"
            finally:
                exchange.observers.remove(observe)
                self.watchers.discard(queue)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def catalogue(self, request: Request) -> Response:
        self.caller(request)
        return reply({"data": list(self.library.catalogue())})

    async def add_model(self, request: Request) -> Response:
        self.caller(request, admin=True)
        wanted = await parse(request, NewModel)
        steps: asyncio.Queue[tuple[str, int, int] | None] = asyncio.Queue(maxsize=10_000)

        def progress(label: str, done: int, total: int) -> None:
            if not steps.full():
                steps.put_nowait((label, done, total))

        async def events() -> AsyncIterator[bytes]:
            task = asyncio.create_task(self.library.add(wanted.model_dump(exclude_none=True), progress))
            task.add_done_callback(lambda _: steps.put_nowait(None))
            try:
                while (step := await steps.get()) is not None:
                    yield event("progress", dict(zip(("label", "done", "total"), step, strict=True)))
                yield event("done", {"model": render_model(task.result(), {"removable": True}, int(time.time()))})
            except AtollError as error:
                yield event("error", error_body(error, request.url.path, ""))
            finally:
                task.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def remove_model(self, request: Request) -> Response:
        self.caller(request, admin=True)
        await self.library.remove(request.path_params["id"])
        return reply({"id": request.path_params["id"], "object": "model", "deleted": True})

    async def set_tier(self, request: Request) -> Response:
        self.caller(request, admin=True)
        tier = request.path_params["tier"]
        wanted = await parse(request, TierChange)
        await self.library.assign(tier, wanted.model)
        return reply({"tier": tier, "model": wanted.model})


def event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: ".encode() + orjson.dumps(value) + b"\n\n"


def reply(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


async def parse(request: Request, schema: type[BaseModel]) -> Any:
    """The JSON body as `schema`. Raises InvalidRequest naming the field."""
    try:
        return schema.model_validate(parse_json(await whole(request)))
    except ValidationError as error:
        raise invalid(error) from None


async def whole(request: Request) -> bytes:
    """The body. Raises InvalidRequest where it is too long, without reading further."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_ADMIN_BODY:
            raise InvalidRequest(f"the body must be at most {MAX_ADMIN_BODY} bytes")
    return bytes(body)


def page_after(request: Request) -> dict[str, Any]:
    """Where a page of the ledger begins: after the row at `before`, with the id `before_id` where several have that
    time. Raises InvalidRequest."""
    before, before_id = number(request, "before", 0.0) or None, request.query_params.get("before_id") or None
    if before_id and before is None:
        raise InvalidRequest("before_id goes with before: send both, as 'next' tells them", param="before_id")
    return {"before": before, "before_id": before_id}


def following(last: Entry) -> dict[str, Any]:
    """The query of the page after the one that ends with `last`."""
    return {"before": last.created_at, "before_id": last.id}


def number(request: Request, name: str, default: float) -> float:
    """A finite, non-negative query parameter. Raises InvalidRequest."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e12:
        raise InvalidRequest(f"{name} must be a number of 0 or more", param=name)
    return value
