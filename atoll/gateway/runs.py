"""Long work over the API: ordering runs, watching them, and what they made. For admins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from atoll.core.errors import AtollError, Conflict, InvalidRequest
from atoll.core.ports import Runs, Workshop
from atoll.core.runs import MAX_STEPS, order_of
from atoll.gateway.admin import MAX_WATCHERS, Admin, event, number, parse, reply
from atoll.gateway.errors import error_body

PING_S = 15.0
APART = {"content-security-policy": "sandbox; default-src 'none'", "content-disposition": "attachment"}

Name = Annotated[str, Field(min_length=1, max_length=64)]
Settings = Annotated[dict[str, Any], Field(max_length=200)]


class StepBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Name
    stage: Name
    config: Settings = {}
    inputs: Annotated[dict[Name, Name], Field(max_length=32)] = {}


class NewRun(BaseModel):
    """A `recipe`, or `steps`. `set` puts settings over those of steps, by step name."""

    model_config = ConfigDict(extra="forbid")
    recipe: Name | None = None
    steps: list[StepBody] = Field([], max_length=MAX_STEPS)
    name: str = Field("", max_length=100)
    seed: int = Field(0, ge=0, lt=2**31)
    ray: str = Field("", max_length=256)
    set: Annotated[dict[Name, Settings], Field(max_length=MAX_STEPS)] = {}


@dataclass(slots=True)
class Work:
    admin: Admin
    runs: Runs
    workshop: Workshop
    watchers: list[str] = field(default_factory=list)

    def routes(self) -> list[Route]:
        table: list[tuple[str, str, Any]] = [
            ("GET", "/atoll/v1/stages", self.stages),
            ("GET", "/atoll/v1/runs", self.list_runs),
            ("POST", "/atoll/v1/runs", self.create),
            ("GET", "/atoll/v1/runs/{id}", self.get_run),
            ("GET", "/atoll/v1/runs/{id}/events", self.events),
            ("GET", "/atoll/v1/runs/{id}/steps/{step}/view", self.view),
            ("POST", "/atoll/v1/runs/{id}/cancel", self.cancel),
            ("POST", "/atoll/v1/runs/{id}/resume", self.resume),
            ("GET", "/atoll/v1/artifacts", self.list_artifacts),
            ("GET", "/atoll/v1/artifacts/{digest}", self.get_artifact),
            ("GET", "/atoll/v1/artifacts/{digest}/files/{path:path}", self.file),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in table]

    async def stages(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        recipes = [asdict(recipe) for recipe in self.workshop.recipes.values()]
        return reply({"data": await self.workshop.stages(), "recipes": recipes})

    async def list_runs(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        return reply({"data": await self.runs.rows(_limit(request))})

    async def create(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        wanted = await parse(request, NewRun)
        order = order_of(wanted.model_dump(), self.workshop.recipes)
        return reply(await self.runs.submit(order), 201)

    async def get_run(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        return reply(await self.runs.row(request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        return await self._change(request, "cancel")

    async def resume(self, request: Request) -> Response:
        return await self._change(request, "resume")

    async def _change(self, request: Request, action: Literal["cancel", "resume"]) -> Response:
        self.admin.caller(request, admin=True)
        return reply(await self.runs.change(request.path_params["id"], action))

    async def events(self, request: Request) -> Response:
        """`run` (the row) and `figures` (lines of a step) as server-sent events, until the run has ended."""
        self.admin.caller(request, admin=True)
        id = request.path_params["id"]
        await self.runs.row(id)
        if len(self.watchers) >= MAX_WATCHERS:
            raise Conflict(f"there are {MAX_WATCHERS} watchers already; close a console")
        return StreamingResponse(
            self._told(request, id), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def _told(self, request: Request, id: str) -> AsyncIterator[bytes]:
        self.watchers.append(id)
        silent_since = asyncio.get_running_loop().time()
        try:
            async for name, data in self.runs.follow(id):
                now = asyncio.get_running_loop().time()
                if name != "quiet":
                    yield event(name, data)
                elif now - silent_since > PING_S:
                    yield b": ping\n\n"
                else:
                    continue
                silent_since = now
            yield event("end", {"id": id})
        except AtollError as error:
            yield event("error", error_body(error, request.url.path, ""))
        finally:
            self.watchers.remove(id)

    async def view(self, request: Request) -> Response:
        """A JPEG; no content where the step shows nothing, or not any more."""
        self.admin.caller(request, admin=True)
        path = await self.workshop.view(request.path_params["id"], request.path_params["step"])
        try:
            picture = None if path is None else await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            picture = None
        fresh = {"cache-control": "no-store"}
        if picture is None:
            return Response(status_code=204, headers=fresh)
        return Response(picture, media_type="image/jpeg", headers=fresh)

    async def list_artifacts(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        return reply({"data": await self.workshop.artifacts(_limit(request))})

    async def get_artifact(self, request: Request) -> Response:
        self.admin.caller(request, admin=True)
        return reply(await self.workshop.artifact(request.path_params["digest"]))

    async def file(self, request: Request) -> Response:
        """A file of an artifact, or the part that a Range header asks for."""
        self.admin.caller(request, admin=True)
        path = await self.workshop.file(request.path_params["digest"], request.path_params["path"])
        return FileResponse(path, headers=APART)


def _limit(request: Request) -> int:
    limit = int(number(request, "limit", 100))
    if not 1 <= limit <= 1000:
        raise InvalidRequest("limit must be between 1 and 1000", param="limit")
    return limit
