"""Regions on other machines join over the API: an operator invites one, and it asks for its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.core.errors import NotFound
from atoll.core.ports import Regions
from atoll.gateway.admin import Admin, parse, reply


class Joining(BaseModel):
    """Signed with the key of the token, of which `invite` is the public half (both base64url without padding)."""

    model_config = ConfigDict(extra="forbid")
    csr: str = Field(min_length=1, max_length=16384)
    url: str = Field(min_length=1, max_length=512)
    invite: str = Field(min_length=1, max_length=128)
    signature: str = Field(min_length=1, max_length=256)


class Door(Protocol):
    """`regions.join.Joined`."""

    async def invite(self, region: str) -> dict[str, Any]: ...

    async def join(self, region: str, told: Mapping[str, str]) -> dict[str, Any]: ...


@dataclass(slots=True)
class Invites:
    admin: Admin
    regions: Regions
    door: Door

    def routes(self) -> list[Route]:
        return [
            Route("/atoll/v1/regions/{id}/invite", self.invite, methods=["POST"]),
            Route("/atoll/v1/regions/{id}/join", self.join, methods=["POST"]),
            Route("/atoll/v1/regions/{id}/join", self.part, methods=["DELETE"]),
        ]

    def _region(self, request: Request) -> str:
        id = request.path_params["id"]
        if id not in self.regions.regions:
            raise NotFound(f"there is no region '{id}'; see 'atoll regions list'", param="region")
        return id

    async def invite(self, request: Request) -> Response:
        """A token for one region, shown once; it can be used once, within an hour."""
        self.admin.caller(request, admin=True)
        return reply(await self.door.invite(self._region(request)))

    async def join(self, request: Request) -> Response:
        """No API key: the signature of the invitation lets a region in."""
        told = await parse(request, Joining)
        return reply(await self.door.join(self._region(request), told.model_dump()))

    async def part(self, request: Request) -> Response:
        """Forget the machine that joined; the region is closed."""
        self.admin.caller(request, admin=True)
        region = await self.regions.part(self._region(request))
        return reply({"region": region.id, "status": region.status})
