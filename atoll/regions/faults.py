"""The emulated way to a region: wide-area latency, and the faults that drills inject. Off, it costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

SLOW_SECONDS = 0.25
DRILLS = ("kill", "stall", "slow", "partition")


class Faults:
    """`delay` is seconds one way. `slow` adds seconds to every piece. While `silent`, nothing comes in or goes out,
    as behind a cut cable or in a stopped process."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.slow = 0.0
        self._open = asyncio.Event()
        self._open.set()

    @property
    def silent(self) -> bool:
        return not self._open.is_set()

    @silent.setter
    def silent(self, value: bool) -> None:
        if value:
            self._open.clear()
        else:
            self._open.set()

    @property
    def idle(self) -> bool:
        return not self.delay and not self.slow and self._open.is_set()

    def strike(self, kind: str, seconds: float) -> None:
        """Stall and partition look the same from afar: silence. It passes by itself. `delay` is no fault: it makes the
        way `seconds` long, for good."""
        if kind == "delay":
            self.delay = seconds
            return
        loop = asyncio.get_running_loop()
        if kind == "slow":
            self.slow = SLOW_SECONDS
        else:
            self.silent = True
        loop.call_later(seconds, self.relent)

    def relent(self) -> None:
        self.slow = 0.0
        self.silent = False

    async def passable(self) -> None:
        await self._open.wait()


class Line:
    """One answer on its way: ASGI messages, late by what `faults` say, in order."""

    def __init__(self, faults: Faults, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self.begun = False
        self.written = 0
        self._faults = faults
        self._send = send
        self._under_way: asyncio.Queue[tuple[float, dict[str, Any]] | None] = asyncio.Queue(64)
        self._carrier: asyncio.Task[None] | None = None

    async def arrive(self) -> None:
        """The request's way."""
        if not self._faults.idle:
            await asyncio.sleep(self._faults.delay)
            await self._faults.passable()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._carry({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        self.written += 1
        await self._carry({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._carry({"type": "http.response.body", "body": b""})

    async def _carry(self, message: dict[str, Any]) -> None:
        if self._carrier is None:
            if self._faults.idle:
                await self._send(message)
                return
            self._carrier = asyncio.create_task(self._deliver())
        await self._under_way.put((asyncio.get_running_loop().time() + self._faults.delay, message))

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while item := await self._under_way.get():
            due, message = item
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
            if self._faults.slow:
                await asyncio.sleep(self._faults.slow)
            await self._faults.passable()
            await self._send(message)

    async def close(self) -> None:
        """Wait for what is under way; give it up when this task is cancelled."""
        if self._carrier is None:
            return
        carrier, self._carrier = self._carrier, None
        try:
            await self._under_way.put(None)
            await carrier
        finally:
            carrier.cancel()
