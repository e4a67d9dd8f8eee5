"""Robot policies over the API: what is served, promoting, rolling back, stopping. Moving is behind a WebSocket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from atoll.core.errors import NotFound
from atoll.core.ports import Policies
from atoll.gateway.admin import Admin, parse, reply


class Promote(BaseModel):
    """A policy and the report of the gate that it passed: digests of artifacts, or folders on the server."""

    model_config = ConfigDict(extra="forbid")
    policy: str = Field(min_length=1, max_length=4096)
    report: str = Field(min_length=1, max_length=4096)


class Stop(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str = Field("", max_length=200)


class Reset(BaseModel):
    """The token that the stop gave."""

    model_config = ConfigDict(extra="forbid")
    token: str = Field(min_length=1, max_length=200)


@dataclass(slots=True)
class Robots:
    """`sockets` answer observations at `/atoll/v1/policies/{id}/<name>`."""

    admin: Admin
    policies: Policies
    sockets: Mapping[str, ASGIApp]

    def routes(self) -> list[BaseRoute]:
        table: list[tuple[str, str, Any]] = [
            ("GET", "/atoll/v1/policies", self.list_policies),
            ("GET", "/atoll/v1/policies/{id}", self.get_policy),
            ("POST", "/atoll/v1/policies/{id}/promote", self.promote),
            ("POST", "/atoll/v1/policies/{id}/rollback", self.rollback),
            ("POST", "/atoll/v1/policies/{id}/stop", self.stop),
            ("POST", "/atoll/v1/policies/{id}/reset", self.reset),
        ]
        http = [Route(path, handler, methods=[method]) for method, path, handler in table]
        live = [WebSocketRoute(f"/atoll/v1/policies/{{id}}/{name}", app) for name, app in self.sockets.items()]
        return [*http, *live]

    async def list_policies(self, request: Request) -> Response:
        self.admin.caller(request)
        return reply({"data": list(self.policies.rows())})

    async def get_policy(self, request: Request) -> Response:
        self.admin.caller(request)
        return reply(self._row(request))

    async def promote(self, request: Request) -> Response:
        key = self.admin.caller(request, admin=True)
        wanted = await parse(request, Promote)
        return reply(await self.policies.promote(request.path_params["id"], wanted.policy, wanted.report, key))

    async def rollback(self, request: Request) -> Response:
        key = self.admin.caller(request, admin=True)
        return reply(await self.policies.rollback(request.path_params["id"], key))

    async def stop(self, request: Request) -> Response:
        """Any key may stop, with or without a body. The token is empty where it is stopped already."""
        key = self.admin.caller(request)
        empty = request.headers.get("content-length", "0") == "0"
        wanted = Stop() if empty else await parse(request, Stop)
        token = await self.policies.stop(request.path_params["id"], key, wanted.reason)
        return reply({**self._row(request), "token": token})

    async def reset(self, request: Request) -> Response:
        """Whoever has the token may."""
        key = self.admin.caller(request)
        wanted = await parse(request, Reset)
        await self.policies.reset(request.path_params["id"], wanted.token, key)
        return reply(self._row(request))

    def _row(self, request: Request) -> Any:
        name = request.path_params["id"]
        for row in self.policies.rows():
            if row["id"] == name:
                return row
        raise NotFound(f"there is no policy '{name}' here", param="policy", code="policy_not_found")
