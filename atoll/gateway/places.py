"""Regions over the API: which there are, opening and closing them, drills, and why a request went where it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.core.errors import NotFound
from atoll.core.places import Client, RegionStatus
from atoll.core.ports import Regions
from atoll.core.route import Request as Asked
from atoll.gateway.admin import Admin, parse, reply


class StatusChange(BaseModel):
    model_config = ConfigDict(extra="forbid")
    status: RegionStatus


class Drill(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["kill", "stall", "slow", "partition"]
    seconds: float = Field(10.0, gt=0, le=600)


class From(BaseModel):
    """A client's place in degrees; `country` (ISO) where known."""

    model_config = ConfigDict(extra="forbid")
    lat: float = Field(ge=-90, le=90)
    lon: float = Field(ge=-180, le=180)
    country: str = Field("", pattern="^([A-Z]{2})?$")


class Explain(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=256)
    prompt_tokens: int = Field(0, ge=0, le=10_000_000)
    max_tokens: int = Field(0, ge=0, le=10_000_000)
    residency: Any = None
    data_residency: Any = None
    client: From | None = None


@dataclass(slots=True)
class Places:
    admin: Admin
    regions: Regions
    laws: Mapping[str, Any] = field(default_factory=dict)

    def routes(self) -> list[Route]:
        table: list[tuple[str, str, Any]] = [
            ("GET", "/atoll/v1/regions", self.list_regions),
            ("GET", "/atoll/v1/regions/{id}", self.get_region),
            ("PATCH", "/atoll/v1/regions/{id}", self.change_region),
            ("POST", "/atoll/v1/regions/{id}/drill", self.drill),
            ("GET", "/atoll/v1/requests/{id}/route", self.route_of),
            ("POST", "/atoll/v1/route/explain", self.explain),
            ("GET", "/atoll/v1/laws", self.list_laws),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in table]

    async def list_regions(self, request: Request) -> Response:
        self.admin.caller(request)
        return reply({"data": list(self.regions.rows()), **self.regions.settings()})

    def _row(self, id: str) -> dict[str, Any]:
        for row in self.regions.rows():
            if row["id"] == id:
                sources = dict(self.regions.regions[id].sources)
                return {**row, "sources": sources}
        raise NotFound(f"there is no region '{id}'; see 'atoll regions list'", param="region")

    async def get_region(self, request: Request) -> Response:
        self.admin.caller(request)
        return reply(self._row(request.path_params["id"]))

    async def list_laws(self, request: Request) -> Response:
        self.admin.caller(request)
        return reply(self.laws)

    async def change_region(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        change = await parse(request, StatusChange)
        region = await self.regions.change(request.path_params["id"], change.status)
        return reply(self._row(region.id))

    async def drill(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        wanted = await parse(request, Drill)
        await self.regions.drill(request.path_params["id"], wanted.kind, wanted.seconds)
        return reply(self._row(request.path_params["id"]), 202)

    async def route_of(self, request: Request) -> Response:
        key, id = self.admin.caller(request), request.path_params["id"]
        found = self.regions.decisions_of(id, None if key.role == "admin" else key.id)
        if not found:
            raise NotFound(f"no decision about '{id}' is kept; the last 1,000 are", param="id")
        return reply({"id": id, "decisions": found})

    async def explain(self, request: Request) -> Response:
        """What routing would decide now. Nothing is sent."""
        key = self.admin.caller(request)
        wanted = await parse(request, Explain)
        exchange = self.admin.gateway.exchange
        rules = {"residency": wanted.residency, "data_residency": wanted.data_residency}
        place, body = exchange.placing.take(key, {"model": wanted.model, **{k: v for k, v in rules.items() if v}})
        card = exchange.models.resolve(body["model"])
        asked = Asked("", card.id, key.id, prompt=wanted.prompt_tokens, output=wanted.max_tokens, allowed=place.allowed)
        client = Client(**wanted.client.model_dump()) if wanted.client else None
        return reply({"id": None, "rule": place.rule, "decisions": [self.regions.weigh(asked, client)]})
