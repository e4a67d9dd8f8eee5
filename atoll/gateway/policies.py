"""Robot policies over the API: what is served, promoting, rolling back, stopping; and as tools. Robots are moved over
a WebSocket."""

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
from atoll.core.ports import Policies, Tools
from atoll.gateway.admin import Admin, parse, reply, whole
from atoll.gateway.http import parse_json
from atoll.gateway.mcp import Toolbox, answer


class Promote(BaseModel):
    """A policy and the report of the gate that it passed: digests of artifacts, or folders on the server. Or a service,
    which the stage `serve` makes, as `policy` alone. `uncompared`: also where the report does not compare with what is
    in service."""

    model_config = ConfigDict(extra="forbid")
    policy: str = Field(min_length=1, max_length=4096)
    report: str = Field("", max_length=4096)
    uncompared: bool = False


class Stop(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str = Field("", max_length=200)


class Reset(BaseModel):
    """The token that the stop gave."""

    model_config = ConfigDict(extra="forbid")
    token: str = Field(min_length=1, max_length=200)


class Consent(BaseModel):
    """The key's holder agrees that the simulated robot moves when its tool is called; false takes it back."""

    model_config = ConfigDict(extra="forbid")
    consent: bool
    seconds: float = Field(600.0, gt=0, le=86400)


class Run(BaseModel):
    """A call of the policy's tool. `consent` holds for this call, and is the caller's, not the model's."""

    model_config = ConfigDict(extra="forbid")
    arguments: dict[str, Any] = Field({}, max_length=32)
    consent: bool = False


@dataclass(slots=True)
class Robots:
    """`sockets` answer observations at `/atoll/v1/policies/{id}/<name>`."""

    admin: Admin
    policies: Policies
    tools: Tools
    sockets: Mapping[str, ASGIApp]

    def routes(self) -> list[BaseRoute]:
        table: list[tuple[str, str, Any]] = [
            ("GET", "/atoll/v1/policies", self.list_policies),
            ("GET", "/atoll/v1/policies/{id}", self.get_policy),
            ("POST", "/atoll/v1/policies/{id}/promote", self.promote),
            ("POST", "/atoll/v1/policies/{id}/rollback", self.rollback),
            ("POST", "/atoll/v1/policies/{id}/stop", self.stop),
            ("POST", "/atoll/v1/policies/{id}/reset", self.reset),
            ("GET", "/atoll/v1/policies/{id}/tool", self.tool),
            ("POST", "/atoll/v1/policies/{id}/consent", self.consent),
            ("POST", "/atoll/v1/policies/{id}/run", self.run),
            ("POST", "/atoll/v1/policies/{id}/mcp", self.mcp),
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
        name, given = request.path_params["id"], (wanted.policy, wanted.report)
        return reply(await self.policies.promote(name, *given, key, wanted.uncompared))

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

    async def tool(self, request: Request) -> Response:
        self.admin.caller(request)
        return reply(await self.tools.tool(request.path_params["id"]))

    async def consent(self, request: Request) -> Response:
        key, name = self.admin.caller(request), request.path_params["id"]
        wanted = await parse(request, Consent)
        until = self.tools.agree(name, key, wanted.seconds if wanted.consent else 0.0)
        return reply({"id": name, "key_id": key.id, "consent": wanted.consent, "until": until})

    async def run(self, request: Request) -> Response:
        key, name = self.admin.caller(request), request.path_params["id"]
        wanted = await parse(request, Run)
        return reply(await self.tools.run(name, wanted.arguments, key, wanted.consent))

    async def mcp(self, request: Request) -> Response:
        """The tool as a server of the Model Context Protocol. Consent is given before, by the key's holder."""
        key, name = self.admin.caller(request), request.path_params["id"]
        tool = await self.tools.tool(name)

        async def call(_: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
            return await self.tools.run(name, arguments, key, False)

        box = Toolbox([tool], call, "The robot is simulated. Whoever holds the API key must agree to motion first.")
        told = await answer(box, parse_json(await whole(request)))
        return Response(status_code=202) if told is None else reply(told)

    def _row(self, request: Request) -> Any:
        name = request.path_params["id"]
        for row in self.policies.rows():
            if row["id"] == name:
                return row
        raise NotFound(f"there is no policy '{name}' here", param="policy", code="policy_not_found")
