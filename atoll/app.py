"""The composition root: settings in, a running cloud out. Every concrete class is chosen here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from atoll import __version__, console
from atoll.core.errors import AtollError, SetupError
from atoll.core.findings import Finding
from atoll.core.types import Key
from atoll.core.types import Limits as KeyLimits
from atoll.engines.checks import check_machine, check_network, check_weights
from atoll.engines.library import Library, Place
from atoll.gateway.accounts import Accounts
from atoll.gateway.admin import Admin, new_key
from atoll.gateway.asgi import Gateway, Limits
from atoll.gateway.exchange import Exchange
from atoll.gateway.metrics import Metrics
from atoll.gateway.rest import build_rest
from atoll.gateway.server import bind, bind_operator, build_server
from atoll.gateway.tracing import Tracer
from atoll.regions.catalogue import read_regions
from atoll.regions.fleet import Fleet
from atoll.regions.home import Home
from atoll.regions.site import Site
from atoll.settings import Settings
from atoll.store import Store, open_store
from atoll.store.checks import check_store

log = logging.getLogger("atoll")

Progress = Callable[[str, int, int], None]
SESSION_KEY = "key_session"
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
        store = await open_store(settings.store_url)
        stack.push_async_callback(store.close)
        secret, first_run = await _issue_key(store)
        now = time.time()
        accounts = Accounts(await store.keys.all(), await store.ledger.recover(now), now)
        cleaning = asyncio.create_task(_housekeeping(store))
        stack.callback(cleaning.cancel)
        fleet = Fleet()
        stack.push_async_callback(fleet.close)
        home = Home(fleet, Site(), settings.region, settings.slots)
        stack.push_async_callback(home.close)
        await home.open([settings.region])
        library = Library(_place(settings), home)
        stack.push_async_callback(library.stop)
        library.start(settings.models, progress)
        exchange = Exchange(fleet, accounts, store.ledger)
        if settings.otlp_endpoint:
            exchange.tracer = Tracer(settings.otlp_endpoint, __version__)
            stack.push_async_callback(asyncio.to_thread, exchange.tracer.close)
        operator = bind_operator(settings.operator_socket)
        stack.callback(settings.operator_socket.unlink, missing_ok=True)
        limits = Limits(settings.max_body_bytes)
        gateway = Gateway(exchange, limits, str(settings.operator_socket), store.responses)
        metrics = Metrics(exchange.running)
        exchange.observers.append(metrics.observe)
        kind = settings.store_url.partition(":")[0]
        admin = Admin(gateway, store.keys, library, read_regions(), kind, now)
        gateway.rest = build_rest(admin, metrics, Path(console.__file__).parent, library.waiting_for)
        server = build_server(gateway, settings.drain_seconds)
        serving = asyncio.create_task(server.serve(sockets=[listener, operator]))
        await server.listening.wait()
        gc.freeze()
        gc.set_threshold(50_000)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        try:
            yield Cloud(f"http://{shown}:{port}", secret, first_run, library, server)
        finally:
            admin.dismiss()
            server.should_exit = True
            await serving


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


async def _issue_key(store: Store) -> tuple[str, bool]:
    """A durable admin key at the first start. It cannot be shown again, so later starts print a session key,
    which replaces that of the start before."""
    keys: list[Key] = list(await store.keys.all())
    if not any(k.role == "admin" and k.id != SESSION_KEY for k in keys):
        key, secret = new_key("first admin", "admin", KeyLimits())
        await store.keys.add(key)
        return secret, True
    key, secret = new_key("this start", "admin", KeyLimits(), SESSION_SECONDS)
    key = replace(key, id=SESSION_KEY)
    await (store.keys.replace(key) if any(k.id == SESSION_KEY for k in keys) else store.keys.add(key))
    return secret, False


async def _housekeeping(store: Store) -> None:
    """Remove stored responses that have expired, once an hour."""
    while True:
        try:
            await store.responses.purge(time.time())
        except AtollError as error:
            log.warning("expired responses were not removed: %s", error.message)
        await asyncio.sleep(3600)
