"""A child process that serves HTTP on loopback, kept alive.

The agreement between parent and child:

- the child picks a free port, or takes the one in `ATOLL_PORT` (set on restarts, so that the URL stays) when it can;
- when it answers, it prints one JSON line `{"url": "http://127.0.0.1:PORT"}` on stdout;
- its stdin is a pipe that the parent never writes to: end of file means that the parent is gone (`exit_with_parent`);
- SIGTERM asks it to finish; SIGKILL follows after the grace time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from atoll.core.errors import EngineFailed

log = logging.getLogger("atoll.engines.process")

STABLE_S = 60.0
TAIL_LINES = 20
LINE_LIMIT = 64 * 1024


def backoff(deaths: int, first: float = 1.0, most: float = 30.0) -> float:
    """Seconds to wait before restart number `deaths` (1, 2, ...): doubling from `first`, at most `most`."""
    return min(most, first * 2.0 ** min(max(deaths, 1) - 1, 60))


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run. `env` is the child's whole environment; times are seconds."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready_timeout: float = 60.0
    grace: float = 5.0
    delay: Callable[[int], float] = backoff


class Child:
    """One supervised process. `start` returns its URL; after that it is restarted whenever it dies, until `stop`.

    `on_exit(code)` is called at every unexpected death, `on_ready(url)` whenever it answers again.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        on_exit: Callable[[int], None] | None = None,
        on_ready: Callable[[str], None] | None = None,
    ):
        self.spec = spec
        self.url: str | None = None
        self.deaths = 0
        self.restarts = 0
        self._on_exit, self._on_ready = on_exit, on_ready
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._since = 0.0
        self._port: int | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    def status(self) -> dict[str, Any]:
        state = "running" if self.url else "starting" if self._supervisor else "stopped"
        return {"state": state, "pid": self.pid, "url": self.url, "restarts": self.restarts, "log": list(self._tail)}

    async def start(self) -> str:
        """Spawn and wait for the handshake. Raises EngineFailed with the last lines it printed."""
        if self._supervisor:
            raise RuntimeError(f"{self.spec.name} is already started")
        url = await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.spec.name}")
        return url

    async def stop(self, grace: float | None = None) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds. Safe to call twice."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor:
            supervisor.cancel()
            await asyncio.wait([supervisor])
        await self._end(self.spec.grace if grace is None else grace)

    def kill(self) -> None:
        """End a child that hangs; the supervisor starts it again."""
        if self.pid:
            self._process.kill()

    async def _supervise(self) -> None:
        while True:
            code = await self._process.wait()
            lived = time.monotonic() - self._since
            was_ready, self.url = self.url is not None, None
            await self._end(0)
            self.deaths = 1 if was_ready and lived > STABLE_S else self.deaths + 1
            delay = self.spec.delay(self.deaths)
            log.warning("%s exited with %s; restart in %.1f s", self.spec.name, code, delay)
            if was_ready and self._on_exit:
                self._on_exit(code)
            await asyncio.sleep(delay)
            self.restarts += 1
            try:
                await self._launch()
            except EngineFailed as error:
                log.error("%s", error.message)

    async def _launch(self) -> str:
        env = dict(self.spec.env)
        if self._port:
            env["ATOLL_PORT"] = str(self._port)
        pipe = asyncio.subprocess.PIPE
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.argv, env=env, stdin=pipe, stdout=pipe, stderr=pipe, limit=LINE_LIMIT, start_new_session=True
            )
        except OSError as error:
            raise EngineFailed(f"{self.spec.name} could not be started: {error}") from error
        self._since = time.monotonic()
        self._tail.clear()
        self._pumps = [asyncio.create_task(self._pump(self._process.stderr))]
        url = None
        try:
            url = await asyncio.wait_for(self._handshake(self._process.stdout), self.spec.ready_timeout)
        except TimeoutError:
            raise EngineFailed(f"{self.spec.name} was not ready within {self.spec.ready_timeout:g} s") from None
        finally:
            if url is None:
                await self._end(0)
        self._pumps.append(asyncio.create_task(self._pump(self._process.stdout)))
        self.url, self._port = url, urlsplit(url).port
        if self._on_ready:
            self._on_ready(url)
        return url

    async def _handshake(self, stdout: asyncio.StreamReader) -> str:
        """The URL of the first JSON line that has one; other lines are log."""
        async for line in _lines(stdout):
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and isinstance(said.get("url"), str):
                    return said["url"]
            self._tail.append(line)
        code = await self._process.wait()
        await asyncio.wait(self._pumps, timeout=1)
        raise EngineFailed(f"{self.spec.name} ended with {code} before it was ready: " + " | ".join(self._tail))

    async def _pump(self, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            self._tail.append(line)
            log.debug("%s: %s", self.spec.name, line)

    async def _end(self, grace: float) -> None:
        """Leave no process, pipe or task behind."""
        process, self._process, self.url = self._process, None, None
        if process is None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.close()
        try:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM if grace > 0 else signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), grace or 10)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            pumps, self._pumps = self._pumps, []
            if pumps:
                await asyncio.wait(pumps, timeout=1)
            for pump in pumps:
                pump.cancel()


async def _lines(stream: asyncio.StreamReader):
    """Decoded lines without their end; a line over the limit comes in pieces."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as end:
            line = end.partial
        except asyncio.LimitOverrunError as long:
            line = await stream.read(long.consumed)
        if not line:
            return
        yield line.decode("utf-8", "replace").rstrip("\r\n")


async def watch(
    child: Child, healthy: Callable[[str], Awaitable[bool]], *, every: float = 5.0, failures: int = 3
) -> None:
    """Probe the child for ever; kill it (so that it is restarted) after `failures` probes in a row went wrong."""
    missed = 0
    while True:
        await asyncio.sleep(every)
        if child.url is None:
            missed = 0
            continue
        missed = 0 if await healthy(child.url) else missed + 1
        if missed >= failures:
            log.error("%s does not answer; ending it", child.spec.name)
            child.kill()
            missed = 0


def exit_with_parent(grace: float = 5.0) -> None:
    """For the child: when stdin ends, send this process SIGTERM, and leave for good `grace` seconds later."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=wait, name="exit with parent", daemon=True).start()
