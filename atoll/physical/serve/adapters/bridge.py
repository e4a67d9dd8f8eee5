"""What bridges share: connections to a policy of a cloud, one for each API key, made again when they break."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from ipaddress import ip_address
from typing import Any

from atoll.core.errors import AtollError, DeadlineExceeded, InvalidRequest, Overloaded, Unauthenticated
from atoll.physical.serve.client import Answer, Robot, connect

MAX_KEYS = 8
IDLE_S = 60.0
ANSWER_S = 10.0
BRIDGES = {
    "groot": ("atoll.physical.serve.adapters.groot", 5555),
    "lerobot": ("atoll.physical.serve.adapters.lerobot", 8080),
}
"""protocol -> module, and the port that its clients expect."""


@dataclass(slots=True)
class Held:
    """A connection, and when it was asked for last."""

    robot: Robot
    stack: AsyncExitStack
    used: float


@dataclass(slots=True)
class Cloud:
    """`url` is that of the policy's WebSocket. `key` is used for clients whose protocol has no place for one; empty:
    there are none. `consent` and `simulated` are what whoever started the bridge says of what moves. A connection that
    was idle for a minute makes room for that of another key."""

    url: str
    key: str = ""
    consent: bool = False
    simulated: bool = False
    _held: dict[str, Held] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def robot(self, key: Any) -> Robot:
        """Raises Unauthenticated without a key, EngineFailed where the cloud refuses it or is gone."""
        secret = key or self.key
        if not isinstance(secret, str) or not secret.isascii() or not secret.isprintable() or not secret:
            raise Unauthenticated("no API key of the cloud was given", code="missing_api_key")
        if secret not in self._held:
            async with self._opening:
                if secret not in self._held:
                    await self._open(secret)
        held = self._held[secret]
        held.used = time.monotonic()
        return held.robot

    async def act(self, key: Any, given: dict[str, Any], at: float | None) -> tuple[Robot, Answer]:
        """`given` has `observation` and `images`. A connection that broke, or on which nothing came, is made again with
        the next observation."""
        robot = await self.robot(key)
        try:
            async with asyncio.timeout(ANSWER_S):
                return robot, await robot.act(given["observation"], images=given["images"], at=at)
        except TimeoutError:
            await self._leave(key, robot)
            raise DeadlineExceeded(f"the cloud has not answered in {ANSWER_S:g} s") from None
        except AtollError:
            if robot.gone:
                await self._leave(key, robot)
            raise

    async def leave(self, key: Any) -> None:
        """Nothing where the key has no connection."""
        if isinstance(secret := key or self.key, str) and (held := self._held.pop(secret, None)) is not None:
            await held.stack.aclose()

    async def close(self) -> None:
        for key in list(self._held):
            await self.leave(key)

    async def _open(self, secret: str) -> None:
        now = time.monotonic()
        for other in [each for each, held in self._held.items() if now - held.used > IDLE_S]:
            await self.leave(other)
        if len(self._held) >= MAX_KEYS:
            raise Overloaded(f"this bridge has {MAX_KEYS} clients already")
        stack = AsyncExitStack()
        opened = connect(self.url, secret, consent=self.consent, simulated=self.simulated, polls=True)
        try:
            async with asyncio.timeout(ANSWER_S):
                self._held[secret] = Held(await stack.enter_async_context(opened), stack, now)
        except TimeoutError:
            raise DeadlineExceeded(f"the cloud has not answered in {ANSWER_S:g} s") from None

    async def _leave(self, key: Any, robot: Robot) -> None:
        """Unless another client has made the key's connection anew meanwhile."""
        held = self._held.get(key or self.key)
        if held is not None and held.robot is robot:
            await self.leave(key)


def channels_of(robot: Robot, actions: Any) -> dict[str, Any]:
    """Actions (n, a) by channel, (n, size) each."""
    parts, at = {}, 0
    for channel in robot.metadata["manifest"]["action"]:
        parts[channel["name"]] = actions[:, at : at + channel["size"]]
        at += channel["size"]
    return parts


async def serve(cloud: Cloud, protocol: str, host: str, port: int = 0) -> None:
    """Speak `protocol` at an address (port 0: the protocol's own) until cancelled. Raises AtollError."""
    if protocol not in BRIDGES:
        raise InvalidRequest(f"'protocol' must be one of {', '.join(BRIDGES)}", param="protocol")
    if cloud.key and not ip_address(host).is_loopback:
        message = f"a bridge that lends its key listens on loopback only: whoever reaches {host} could move the robot"
        raise InvalidRequest(message, param="host")
    module, usual = BRIDGES[protocol]
    await import_module(module).serve(cloud, host, port or usual)
