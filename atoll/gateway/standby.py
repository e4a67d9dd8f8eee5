"""A second region at work on the same answer, and what a failed one is blamed for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from atoll.core.errors import AtollError, DeadlineExceeded, EngineFailed, Overloaded
from atoll.core.health import blames
from atoll.core.ports import Reply
from atoll.core.recover import Kind
from atoll.core.types import Endpoint
from atoll.gateway.deltas import Chunk, brings_text
from atoll.gateway.stream import parsed


class Mismatch(EngineFailed):
    """An answer made again is not the one that was sent."""


class Standby:
    """A second region's answer to the same request, kept until it is needed. `begun`: it has text."""

    def __init__(self) -> None:
        self.endpoint: Endpoint | None = None
        self.begun = asyncio.Event()
        self._reply: Reply | None = None
        self._kept: asyncio.Queue[Chunk | AtollError | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def begin(self, asked: Any, primary: str) -> None:
        self._task = asyncio.create_task(self._collect(asked, primary))

    @property
    def alive(self) -> bool:
        return self._reply is not None

    async def _collect(self, asked: Any, primary: str) -> None:
        try:
            reply = await asked
            if reply.status >= 400 or reply.endpoint.name == primary:
                reply.close()
                return
            self._reply, self.endpoint = reply, reply.endpoint
            async for chunk in parsed(reply):
                self._kept.put_nowait(chunk)
                if brings_text(chunk):
                    self.begun.set()
            self._kept.put_nowait(None)
            self.begun.set()
        except AtollError as error:
            blame(self._reply, error)
            self._reply = None
            self._kept.put_nowait(error)

    async def is_before(self, other: asyncio.Future[Any]) -> bool:
        """Wait for whichever has text first, this or `other`, which may also fail."""
        begun = asyncio.ensure_future(self.begun.wait())
        try:
            await asyncio.wait({begun, other}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
        return not other.done()

    async def chunks(self) -> AsyncIterator[Chunk]:
        try:
            while item := await self._kept.get():
                if isinstance(item, AtollError):
                    raise item
                yield item
        finally:
            self.close()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._reply is not None:
            self._reply.close()


async def until_text(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    """The chunks up to the first that brings text; all, if none does."""
    held = []
    async for chunk in chunks:
        held.append(chunk)
        if brings_text(chunk):
            break
    return held


def kind(error: AtollError) -> Kind:
    if isinstance(error, Mismatch):
        return "mismatch"
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, DeadlineExceeded):
        return "stalled"
    return "died" if error.retryable else "request"


def blame(reply: Reply | None, error: AtollError) -> None:
    """Free the slot of an answer that failed, and count it against its endpoint where that is to blame."""
    if reply is not None:
        reply.fail() if blames(kind(error)) else reply.close()
