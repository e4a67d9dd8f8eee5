"""What the rooms need from each other. Each port has one contract suite in tests/contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from atoll.core.cards import Card
from atoll.core.leases import Lent, Recall, Report, Stale, Want
from atoll.core.places import Client, Machine, Region, RegionStatus
from atoll.core.quota import Account, Reject
from atoll.core.recover import Left
from atoll.core.route import Request
from atoll.core.runs import Order, Recipe
from atoll.core.types import Endpoint, Entry, Key, Limits


class Engine(Protocol):
    """A way to run one model on this machine. `start` returns when the endpoint answers."""

    card: Card

    async def start(self) -> Endpoint: ...

    async def stop(self) -> None: ...

    def status(self) -> Mapping[str, Any]: ...


class Runner(Protocol):
    """Runs requests to one model on its engine, beside it: canonical OpenAI requests in, canonical chunks out.

    `post` sends a JSON body to a path of the engine. What the engine refuses is raised as an AtollError."""

    def answer(self, path: str, body: dict[str, Any], post: Post) -> AsyncIterator[dict[str, Any]]:
        """Chunks of the answer. Each choice carries `token_ids`, the tokens that made it, in the order sampled; null
        where they are not known. A chunk may carry `prompt_read`, the prompt's tokens and how many of them were cached,
        before `usage` does. `continue_token_ids` in the body: go on after these tokens of an earlier answer."""
        ...

    async def count(self, body: dict[str, Any], post: Post) -> int:
        """Prompt tokens of a chat request."""
        ...


class Reply(Protocol):
    """An upstream answer under way. `expected`: seconds from asking to its first token, as far as can be foreseen."""

    status: int
    headers: Mapping[str, str]
    endpoint: Endpoint
    expected: float

    async def read(self) -> bytes:
        """The next bytes of the body as they arrive; b"" at its end. Raises EngineFailed or DeadlineExceeded."""
        ...

    async def pipe(self, sink: Callable[[bytes], bool], drained: Callable[[], Awaitable[None]]) -> None:
        """Instead of `read`: hand each piece to `sink` as it arrives, and pause while it returns True until
        `drained` returns. Raises what `read` or `sink` raises."""
        ...

    def close(self) -> None:
        """Free the engine's slot at once if the answer is not complete. Safe to call twice."""
        ...

    def fail(self) -> None:
        """`close`, and count the answer against the endpoint: it was an error, or made no sense."""
        ...


class Ask(NamedTuple):
    """What a request wants of the fleet: a place by `request`, a turn by `priority` (0 to 9), within `deadline` s.
    `waits`: while no region that it may use can serve, wait for one until then. `tried` is told of each endpoint that
    is asked, before it answers. `hope`: seconds that dead endpoints with the weights asked for are waited for, where
    only others are left."""

    request: Request
    priority: int = 5
    deadline: float = 600.0
    waits: bool = False
    tried: Callable[[Endpoint], None] | None = None
    hope: float = 0.0


class Models(Protocol):
    """The running fleet, as the gateway sees it. `tiers` maps service tiers to card ids."""

    tiers: Mapping[str, str]

    def cards(self) -> Mapping[str, Card]: ...

    def resolve(self, name: str) -> Card:
        """The card behind a model id or tier name. Raises NotFound."""
        ...

    def left(self, request: Request, hoping: bool) -> Left:
        """Which weights are left for an answer that broke, as `core.route.left` says."""
        ...

    async def open(
        self, card: Card, path: str, body: bytes, content_type: str = "application/json", ask: Ask | None = None
    ) -> Reply:
        """POST to an endpoint that serves `card`. Raises EngineFailed, Overloaded or DeadlineExceeded
        when no endpoint answered; an HTTP error of the engine is a Reply."""
        ...


Post = Callable[[str, bytes], Awaitable[Reply]]


class Ledger(Protocol):
    """Durable account of every request. Rows are keyed by `Entry.id`; the last record of an id wins, but for
    `created_at`, which stays as first recorded."""

    def record(self, entry: Entry) -> Awaitable[None]:
        """Queue `entry` for the next group commit; the awaitable resolves when it is on disk."""
        ...

    async def recover(self, now: float) -> dict[str, Account]:
        """Mark rows that a dead gateway left open as interrupted; accounts by key id as the ledger proves them."""
        ...

    async def entries(
        self,
        *,
        key_id: str | None = None,
        before: float | None = None,
        before_id: str | None = None,
        limit: int = 100,
    ) -> Sequence[Entry]:
        """Newest first. The page after an entry `e`: before=e.created_at, before_id=e.id."""
        ...

    async def entry(self, id: str) -> Entry | None:
        """The row of a request, once it is on disk."""
        ...

    async def usage(self, *, since: float, until: float, step: float, key_id: str | None = None) -> Sequence[dict]:
        """Sums per time bucket, key and model: keys `start, key_id, model, requests, failed, input, output,
        cached, cost`, where `start` is the bucket's first second (a multiple of `step`)."""
        ...


class Keys(Protocol):
    async def add(self, key: Key) -> None:
        """Raises Conflict when the id or digest exists."""
        ...

    async def replace(self, key: Key) -> None:
        """Raises NotFound."""
        ...

    async def all(self) -> Sequence[Key]: ...


class Leases(Protocol):
    """The pool of every key's quota (`core.leases`), which all gateways on one database share. Each call is one
    transaction and may be made again when it failed. What a dead gateway held, the store takes back by itself."""

    holder: str

    async def grant(self, key_id: str, limits: Limits, want: Want) -> Lent | Reject | Recall | Stale:
        """`want` of this gateway: `want.holder` is `holder`."""
        ...

    async def record(self, key_id: str, reports: Sequence[Report]) -> None:
        """All of them may be acknowledged when this returns. Raises InvalidRequest where one contradicts its lease."""
        ...


class Places(Protocol):
    """What operators decided about regions: it holds until they decide otherwise, also over a restart; and where the
    database stands."""

    async def put(self, region_id: str, status: RegionStatus, at: float) -> None:
        """The decision of the latest `at` wins."""
        ...

    async def all(self) -> Mapping[str, tuple[RegionStatus, float]]:
        """Status and time of the decision by region id, in the order of the ids."""
        ...

    async def stands_in(self, region: str) -> str:
        """The region that the database stands in: `region`, unless it was told another before."""
        ...

    async def join(self, region_id: str, machine: Machine) -> None:
        """This machine serves it from now on, in place of any other; no gateway does by itself."""
        ...

    async def part(self, region_id: str) -> None:
        """No machine elsewhere serves it any more."""
        ...

    async def joined(self) -> Mapping[str, Machine]: ...

    async def introduce(self, authority: str, at: float) -> None:
        """A gateway shows certificates of this authority (PEM) to regions that joined. What was introduced
        `INTRODUCED_S` before is forgotten."""
        ...

    async def introduced(self) -> Mapping[str, float]:
        """The authorities of gateways, and when they were introduced last."""
        ...


class Responses(Protocol):
    """Stored answers of the Responses API, so that a later request can continue one."""

    async def put(self, id: str, key_id: str, body: dict[str, Any], expires_at: float) -> None:
        """What a key stores is bounded in number and bytes: the oldest make room."""
        ...

    async def get(self, id: str, key_id: str, now: float) -> dict[str, Any]:
        """Raises NotFound: unknown, expired, or another key's."""
        ...

    async def delete(self, id: str, key_id: str) -> None:
        """Raises NotFound."""
        ...

    async def purge(self, now: float) -> int:
        """Remove what has expired; how many were removed."""
        ...


class Library(Protocol):
    """The models of this installation: what could be added, what was, and what the tiers mean."""

    def states(self) -> Mapping[str, Mapping[str, Any]]:
        """By card id: `state` (ready, starting, failed, missing), `detail` (why, and what to do), and whether it is
        `removable`, as what comes with Atoll is not."""
        ...

    def catalogue(self) -> Sequence[Mapping[str, Any]]:
        """Models known by short name that are not installed, with download and memory needs."""
        ...

    async def add(self, request: Mapping[str, Any], progress: Callable[[str, int, int], None]) -> Card:
        """Install from a short name, GGUF file, hub repository or base URL, and start it. Raises AtollError."""
        ...

    async def remove(self, card_id: str) -> None: ...

    async def assign(self, tier: str, card_id: str) -> None:
        """Put a card behind a tier. Raises NotFound."""
        ...


class Roster(Protocol):
    """Where engines report for duty (`regions.fleet.Fleet`)."""

    tiers: dict[str, str]

    def offer(self, card: Card, runner: Runner | None = None) -> None: ...

    async def retire(self, card_id: str) -> None:
        """Forget a model at once; returns when the requests under way on it are answered."""
        ...

    def join(self, card_id: str, endpoint: Endpoint, limit: int = 0) -> None: ...

    def leave(self, card_id: str, name: str) -> None: ...

    def fail(self, card_id: str, reason: str) -> None:
        """No endpoint will come: requests are refused with `reason` instead of waiting for one."""
        ...


class Regions(Protocol):
    """The regions of this cloud (`regions.world.World`)."""

    regions: Mapping[str, Region]

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One a region: what the catalogue says of it, who serves it, and how it is now."""
        ...

    async def change(self, id: str, status: RegionStatus) -> Region:
        """Open (`live`), drain (`draining`) or close (`retired`) it, or say that it is `announced` or `building`.
        Raises NotFound or Conflict."""
        ...

    async def part(self, id: str) -> Region:
        """The machine that joined as this region has left for good; the region is closed, and may be opened here.
        Raises NotFound or Conflict."""
        ...

    async def drill(self, id: str, kind: str, seconds: float) -> None:
        """Break a region for a while: kill, stall, slow, partition. Raises NotFound, InvalidRequest or Conflict."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """`home`, the gateway's own region; `wan`, whether latency is emulated; `objective` of routing."""
        ...

    def decisions_of(self, request_id: str, key_id: str | None) -> Sequence[Mapping[str, Any]]:
        """Why a request went where it did, newest last; empty where it is not kept, or is another key's."""
        ...

    def weigh(self, request: Request, client: Client | None = None) -> Mapping[str, Any]:
        """What would be decided about `request` now, with every endpoint of its card; round trips from the gateway, or
        from `client`."""
        ...


class Runs(Protocol):
    """Long work (`jobs.board.Board`). Rows are as JSON shows them."""

    async def submit(self, order: Order) -> Mapping[str, Any]:
        """The run that was queued. Raises InvalidRequest, NotFound, Overloaded or NotInstalled."""
        ...

    async def rows(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """Newest first."""
        ...

    async def row(self, id: str) -> Mapping[str, Any]:
        """Raises NotFound."""
        ...

    async def change(self, id: str, action: Literal["cancel", "resume"]) -> Mapping[str, Any]:
        """Raises NotFound or Conflict."""
        ...

    def follow(self, id: str) -> AsyncIterator[tuple[str, Any]]:
        """("run", row) whenever it changed and ("figures", lines) as steps tell them, until the run has ended;
        ("quiet", None) about twice a second when there is nothing to tell."""
        ...


class Workshop(Protocol):
    """What runs are made of, and what they make (`jobs.board.Board`)."""

    recipes: Mapping[str, Recipe]

    async def stages(self) -> Sequence[Mapping[str, Any]]:
        """With the JSON schema of each config."""
        ...

    async def artifacts(self, limit: int) -> Sequence[Mapping[str, Any]]:
        """Newest first, without their files."""
        ...

    async def artifact(self, digest: str) -> Mapping[str, Any]:
        """With its files, and as `lineage` all that it was made from. Raises NotFound."""
        ...

    async def file(self, digest: str, name: str) -> Path:
        """Raises NotFound for what the artifact does not list."""
        ...

    async def view(self, run: str, step: str) -> Path | None:
        """The latest picture (JPEG) of a step under way; None where it shows none. Raises NotFound."""


class Policies(Protocol):
    """Robot policies that are served (`physical.serve.service.Service`). Rows are as JSON shows them."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """`id`, `state` (ready, stopped, failed, missing) and `detail`, `promoted`, `past`, `stop`, `manifest`."""
        ...

    async def promote(
        self, name: str, policy: str, report: str, by: Key, uncompared: bool = False
    ) -> Mapping[str, Any]:
        """Serve a policy that its gate's report says has passed; each is a digest or a folder. Without a `report`,
        `policy` is a service, which names both. What was served before is where a rollback goes, and what the report
        must compare with unless `uncompared`. Raises InvalidRequest, NotFound, Conflict or SetupError."""
        ...

    async def rollback(self, name: str, by: Key) -> Mapping[str, Any]:
        """Serve the version before. Raises NotFound or Conflict."""
        ...

    async def stop(self, name: str, by: Key, reason: str) -> str:
        """Emergency stop: only safe actions until `reset` with the token returned, which is empty where it is stopped
        already and `by` is no admin. Raises NotFound."""
        ...

    async def reset(self, name: str, token: str, by: Key) -> None:
        """Raises NotFound, Conflict where it is not stopped, Forbidden for another token."""
        ...


class Tools(Protocol):
    """Served policies as tools that move a simulated robot (`physical.serve.tool.Tools`)."""

    async def tool(self, name: str) -> Mapping[str, Any]:
        """As the field `tools` of a chat request takes it. Raises NotFound, or why it cannot be had."""
        ...

    def agree(self, name: str, by: Key, seconds: float) -> float:
        """The holder of `by` agrees to motion until the time returned. Raises NotFound."""
        ...

    async def run(self, name: str, arguments: Mapping[str, Any], by: Key, consent: bool) -> Mapping[str, Any]:
        """What happened in one episode. `consent` holds for this call. Raises InvalidRequest naming the argument,
        Forbidden where nobody agreed to motion, NotFound, Overloaded, DeadlineExceeded or EngineFailed."""
        ...


SOCKET = "atoll.socket"
"""Where the scope of a WebSocket has its `Socket`."""


class Socket(Protocol):
    """A WebSocket under the application: messages are handed over where they arrive, and answered there. It costs a
    queue, a task and two system calls less a message than ASGI does. Once the connection is accepted."""

    def listen(self, hear: Callable[[bytes | str], None]) -> None:
        """Give every message from now on to `hear`, which must not wait."""
        ...

    def say(self, frame: bytes | str) -> None:
        """Send. A client that has left too much unread is cut off."""
        ...
