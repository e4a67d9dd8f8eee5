"""The composition root: settings in, a running cloud out. Every concrete class is chosen here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any

import uvloop

from atoll import __version__, console
from atoll.core.errors import AtollError, SetupError
from atoll.core.findings import Finding
from atoll.core.places import Region, RegionStatus
from atoll.core.recover import Hedging
from atoll.core.route import OBJECTIVES
from atoll.core.types import Key
from atoll.core.types import Limits as KeyLimits
from atoll.engines.checks import check_machine, check_network, check_weights
from atoll.engines.library import Library, Place
from atoll.engines.process import Child, Spec, exit_with_parent
from atoll.gateway.accounts import Accounts
from atoll.gateway.admin import Admin, new_key
from atoll.gateway.asgi import Gateway, Limits
from atoll.gateway.audit import Audit
from atoll.gateway.exchange import Exchange
from atoll.gateway.invites import Invites
from atoll.gateway.leased import LeasedAccounts
from atoll.gateway.metrics import Metrics
from atoll.gateway.places import Places
from atoll.gateway.placing import Placing
from atoll.gateway.policies import Robots
from atoll.gateway.receipts import open_signer
from atoll.gateway.rest import build_rest
from atoll.gateway.runs import Work
from atoll.gateway.server import bind, bind_operator, build_server
from atoll.gateway.tracing import Tracer
from atoll.jobs.artifacts import Shelf
from atoll.jobs.board import Board
from atoll.jobs.desk import Desk
from atoll.jobs.durable import Home as JobsHome
from atoll.jobs.process import Hand
from atoll.physical.recipes import RECIPES, compared
from atoll.physical.serve import endpoints
from atoll.physical.serve.intake import Intake
from atoll.physical.serve.record import Records
from atoll.physical.serve.service import Service
from atoll.physical.serve.tool import Tools
from atoll.physical.stages import STAGES, load_stage
from atoll.regions.catalogue import read_catalogue, read_regions
from atoll.regions.fleet import Fleet
from atoll.regions.home import Home
from atoll.regions.join import Door, Joined, Token, enroll, open_door
from atoll.regions.laws import DISCLAIMER, read_laws
from atoll.regions.site import Site
from atoll.regions.station import Station
from atoll.regions.world import Plan, World
from atoll.settings import Settings
from atoll.store import Store, open_store
from atoll.store.checks import check_store

log = logging.getLogger("atoll")

Progress = Callable[[str, int, int], None]
SESSION_KEY = "key_session"
SHARED = {"postgresql", "postgres"}
SESSION_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Cloud:
    """A running installation. `secret` is a key that works and is shown nowhere again."""

    url: str
    secret: str
    first_run: bool
    library: Library
    server: object


@contextlib.asynccontextmanager
async def running(settings: Settings, progress: Progress) -> AsyncIterator[Cloud]:
    """Start everything, yield once the API answers (models may still load), stop everything that was started."""
    async with contextlib.AsyncExitStack() as stack:
        _prepare(settings.data)
        listener = bind(settings.host, settings.port)
        stack.callback(listener.close)
        catalogue = _regions(settings)
        store = await _store(stack, settings)
        kind = settings.store_url.partition(":")[0]
        secret, first_run = await _issue_key(store, kind in SHARED)
        now = time.time()
        accounts = await _accounts(stack, store, kind in SHARED, now)
        stack.callback(asyncio.create_task(_housekeeping(store)).cancel)
        fleet = Fleet()
        stack.push_async_callback(fleet.close)
        home = Home(fleet, Site(), settings.region, settings.slots)
        stack.push_async_callback(home.close)
        world = _world(settings, catalogue, home, fleet)
        if settings.route_log:
            fleet.log = stack.enter_context(_append(Path(settings.route_log))).write
        stack.push_async_callback(world.close)
        library = Library(_place(settings), home)
        stack.push_async_callback(library.stop)
        library.start(settings.models, progress)
        joined = Joined(settings.data / "trust", store.places)
        world.decisions, world.members, joined.admit = store.places, joined, world.admit
        await world.start(_round_trips(world))
        placing = Placing(world.regions, settings.region, settings.otlp_region)
        exchange = Exchange(fleet, accounts, store.ledger, placing, Hedging(settings.hedge))
        if settings.otlp_endpoint:
            exchange.tracer = Tracer(settings.otlp_endpoint, __version__)
            stack.push_async_callback(asyncio.to_thread, exchange.tracer.close)
        operator = bind_operator(settings.operator_socket)
        stack.callback(settings.operator_socket.unlink, missing_ok=True)
        gateway = Gateway(exchange, Limits(settings.max_body_bytes), str(settings.operator_socket), store.responses)
        metrics = Metrics(exchange.running)
        exchange.observers.append(metrics.observe)
        policies = await _policies(stack, settings, fleet)
        admin = Admin(gateway, store.keys, library, kind, now, policies)
        board = _board(stack, settings)
        regions = (Places(admin, world, _laws(settings)), Invites(admin, world, joined))
        audit = Audit(admin, await asyncio.to_thread(open_signer, settings.data))
        tools = Tools(policies, lambda: _near(listener))
        robots = Robots(admin, policies, tools, endpoints(policies, accounts.identify))
        parts = (*regions, audit, Work(admin, board, board), robots, admin)
        gateway.rest = build_rest(parts, metrics, Path(console.__file__).parent, library.waiting_for)
        server = build_server(gateway, settings.drain_seconds)
        serving = asyncio.create_task(server.serve(sockets=[listener, operator]))
        await server.listening.wait()
        gc.freeze()
        gc.set_threshold(50_000)
        try:
            yield Cloud(_address(listener), secret, first_run, library, server)
        finally:
            for part in (admin, board, policies):
                part.dismiss()
            server.should_exit = True
            await serving


def _near(listener: socket.socket) -> str:
    """Where this machine's own processes open WebSockets."""
    host, port = listener.getsockname()[:2]
    return _address(listener).replace("http", "ws") if host not in ("0.0.0.0", "::") else f"ws://127.0.0.1:{port}"


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def open_desk(settings: Settings) -> Desk:
    """Where runs of the physical loop are ordered. Their worker computes on one thread for each of its own,
    and Mesa's software renderer draws on the one that calls it: pictures are too small to share."""
    _prepare(settings.data)
    home = JobsHome(settings.data, settings.jobs, "atoll.physical.stages:load_stage")
    hand = Hand(home, {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0", **os.environ})
    promoted = partial(Records(settings.data / "policies").promoted, Shelf(settings.data).folder)
    return Desk(home, hand, tuple(STAGES), load_stage, lambda order: compared(order, promoted))


def _board(stack: contextlib.AsyncExitStack, settings: Settings) -> Board:
    """The runs of the physical loop."""
    board = Board(open_desk(settings), RECIPES)
    stack.push_async_callback(board.close)
    board.start()
    return board


async def _policies(stack: contextlib.AsyncExitStack, settings: Settings, fleet: Fleet) -> Service:
    """The robot policies in service."""
    find = Shelf(settings.data).folder
    policies = Service(settings.data / "policies", fleet, find)
    stack.push_async_callback(policies.close)
    await policies.start()
    intake = asyncio.create_task(Intake(policies, settings.data / "artifacts", find).run())
    stack.callback(intake.cancel)
    return policies


async def _store(stack: contextlib.AsyncExitStack, settings: Settings) -> Store:
    """Raises SetupError also where the database stands in another region than this gateway: rules tell where rows are
    stored by the gateway's."""
    store = await open_store(settings.store_url)
    stack.push_async_callback(store.close)
    if (there := await store.places.stands_in(settings.region)) != settings.region:
        raise SetupError(
            f"the database stands in {there}, and this gateway's 'region' is {settings.region}: set 'region' to "
            f"{there}, or 'store' to a database in {settings.region}"
        )
    return store


async def _accounts(stack: contextlib.AsyncExitStack, store: Store, shared: bool, now: float) -> Accounts:
    """Gateways that share a database spend from leases."""
    keys, accounts = await store.keys.all(), await store.ledger.recover(now)
    if not shared:
        return Accounts(keys, accounts, now)
    leased = LeasedAccounts(keys, accounts, now, store.leases, store.keys)
    leased.start()
    stack.push_async_callback(leased.close)
    return leased


async def serve(settings: Settings, progress: Progress, announce: Callable[[Cloud], None]) -> None:
    """Run until SIGINT or SIGTERM; then drain: requests under way finish, new connections are refused."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, stop.set)
    async with running(settings, progress) as cloud:
        settled = asyncio.create_task(cloud.library.settled())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({settled, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            announce(cloud)
        await stopping
        settled.cancel()


def run(settings: Settings, progress: Progress, announce: Callable[[Cloud], None]) -> None:
    uvloop.run(serve(settings, progress, announce))


async def serve_region(
    settings: Settings, door: Door, progress: Progress, announce: Callable[[str], None]
) -> None:
    """One region and its engines in this process, for the gateway that is let in by its door, until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        site = Site()
        stack.push_async_callback(site.close)
        station = Station(door.region, site, settings.slots, door.token, door.trust)
        await _listen(station, door)
        stack.push_async_callback(station.close)
        library = Library(_place(replace(settings, region=door.region)), site)
        stack.push_async_callback(library.stop)
        library.start(settings.models, progress)
        announce(station.url)
        await stop.wait()


async def _listen(station: Station, door: Door) -> None:
    try:
        await station.listen(door.host, door.port)
    except OSError as error:
        raise SetupError(f"cannot listen on {door.host}:{door.port}: {error.strerror}; see --listen") from None


def run_region(settings: Settings, announce: Callable[[str], None]) -> None:
    """For the gateway that started this process; ends with it."""
    exit_with_parent()
    door = Door(settings.region, settings.host, settings.port, settings.region_token)
    uvloop.run(serve_region(settings, door, lambda *_: None, announce))


def join_region(settings: Settings, gateway: str, token: str, listen: tuple[str, int]) -> None:
    """Become a region of the cloud at `gateway`. Raises AtollError."""
    _prepare(settings.data)
    enroll(settings.data / "region", gateway, Token.parse(token), listen)


def run_joined(settings: Settings, progress: Progress, announce: Callable[[str], None]) -> None:
    """Serve the region that joined from this data folder. Raises SetupError."""
    door = open_door(settings.data / "region")
    uvloop.run(serve_region(settings, door, progress, announce))


def _append(path: Path) -> RawIOBase:
    """A line written is in the file at once, whole. Raises SetupError."""
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}; check the setting 'route_log'") from None


def _world(settings: Settings, catalogue: list[Region], home: Home, fleet: Fleet) -> World:
    plan = Plan(frozenset(settings.isolate), settings.wan)
    fleet.objective = OBJECTIVES[settings.objective]

    def spawn(region: str, up: Callable[[str], None]) -> tuple[Child, str]:
        token = secrets.token_urlsafe(32)
        cards = [name for name, seat in home.site.seats.items() if seat.runner is not None]
        told = {
            "ATOLL_DATA": str(settings.data),
            "ATOLL_WEIGHTS": str(settings.weights),
            "ATOLL_REGION": region,
            "ATOLL_REGION_TOKEN": token,
            "ATOLL_PORT": "0",
            "ATOLL_MODELS": ",".join(settings.isolated_models or cards),
            "ATOLL_SLOTS": str(settings.slots),
            "ATOLL_CONTEXT": str(settings.context),
            "ATOLL_THREADS": str(settings.threads),
        }
        spec = Spec(f"region {region}", [sys.executable, "-m", "atoll", "region", "serve"], {**os.environ, **told})
        return Child(spec, on_ready=up), token

    return World(catalogue, home, fleet, plan, spawn)


def _regions(settings: Settings) -> list[Region]:
    """The catalogue, of which only `settings.regions`, if given, and the gateway's own are live. Raises SetupError."""
    regions = {region.id: region for region in read_regions(Path(settings.catalogue) if settings.catalogue else None)}
    wanted = {settings.region, *(settings.regions or regions), *settings.isolate}
    for name in (settings.region, *settings.regions, *settings.isolate):
        if name not in regions:
            known = ", ".join(regions)
            raise SetupError(f"there is no region '{name}' in the catalogue; there are: {known}")
    if settings.objective not in OBJECTIVES:
        raise SetupError(f"'objective' must be one of {', '.join(OBJECTIVES)}, not '{settings.objective}'")
    on = {*settings.regions, *settings.isolate, settings.region}
    off = {id for id, region in regions.items() if region.status == "live"} - wanted
    status: dict[str, RegionStatus] = {**dict.fromkeys(off, "retired"), **dict.fromkeys(on, "live")}
    return [replace(region, status=status.get(id, region.status)) for id, region in regions.items()]


def _laws(settings: Settings) -> dict[str, Any]:
    """The law table as the API tells it; `laws.toml` in the data folder takes its place. Raises SetupError."""
    own, catalogue = settings.data / "laws.toml", Path(settings.catalogue) if settings.catalogue else None
    zones = [zone.name for zone in read_catalogue(catalogue).zones]
    laws = read_laws(zones, own if own.exists() else None)
    return {"disclaimer": DISCLAIMER, "data": [asdict(law) for law in laws]}


def _round_trips(world: World) -> dict[str, float]:
    """Seconds from the gateway to each region."""
    return {id: world.trips.between(world.home.region, id).seconds for id in world.regions}


async def diagnose(settings: Settings, pid: int | None, deep: bool, network: bool) -> list[Finding]:
    """What is present and what is missing here. `pid` is of a cloud that runs; `deep` reads all weights."""
    place = _place(settings)
    return [
        *await check_machine(place),
        _check_port(settings, pid),
        check_store(settings.store_url),
        *await check_weights(place, deep),
        *(await check_network(place) if network else ()),
    ]


def _check_port(settings: Settings, pid: int | None) -> Finding:
    where = f"{settings.host}:{settings.port}"
    if pid is not None:
        return Finding("port", "ok", f"a cloud runs here, process {pid}")
    try:
        bind(settings.host, settings.port).close()
    except SetupError as error:
        return Finding("port", "broken", error.message)
    return Finding("port", "ok", f"{where} is free")


def _prepare(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data / "models").mkdir(exist_ok=True)
    except OSError as error:
        message = f"cannot write to {data}: {error.strerror}; set ATOLL_DATA to a folder of yours"
        raise SetupError(message) from None


def _place(settings: Settings) -> Place:
    threads = settings.threads or os.cpu_count() or 1
    return Place(
        settings.data,
        settings.weights,
        settings.region,
        settings.slots,
        settings.context,
        threads,
        os.environ,
        settings.hub_url,
    )


async def _issue_key(store: Store, shared: bool) -> tuple[str, bool]:
    """A durable admin key at the first start. It cannot be shown again, so later starts print a session key,
    which replaces that of the start before, unless that start may be another gateway's."""
    keys: list[Key] = list(await store.keys.all())
    if not any(k.role == "admin" and not k.id.startswith(SESSION_KEY) for k in keys):
        key, secret = new_key("first admin", "admin", KeyLimits())
        await store.keys.add(key)
        return secret, True
    key, secret = new_key("this start", "admin", KeyLimits(), SESSION_SECONDS)
    key = replace(key, id=f"{SESSION_KEY}_{store.leases.holder}" if shared else SESSION_KEY)
    await (store.keys.replace(key) if any(k.id == key.id for k in keys) else store.keys.add(key))
    return secret, False


async def _housekeeping(store: Store) -> None:
    """Remove stored responses that have expired, once an hour."""
    while True:
        try:
            await store.responses.purge(time.time())
        except AtollError as error:
            log.warning("expired responses were not removed: %s", error.message)
        await asyncio.sleep(3600)
