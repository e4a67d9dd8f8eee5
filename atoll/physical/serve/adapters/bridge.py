"""What bridges share: connections to a policy of a cloud, one for each API key, made again when they break."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from ipaddress import ip_address
from typing import Any

from atoll.core.errors import AtollError, InvalidRequest, Overloaded, Unauthenticated
from atoll.physical.serve.client import Answer, Robot, connect

MAX_KEYS = 8
BRIDGES = {
    "groot": ("atoll.physical.serve.adapters.groot", 5555),
    "lerobot": ("atoll.physical.serve.adapters.lerobot", 8080),
}
"""protocol -> module, and the port that its clients expect."""


@dataclass(slots=True)
class Cloud:
    """`url` is that of the policy's WebSocket. `key` is used for clients whose protocol has no place for one; empty:
    there are none. `consent` and `simulated` are what whoever started the bridge says of what moves."""

    url: str
    key: str = ""
    consent: bool = False
    simulated: bool = False
    _robots: dict[str, tuple[Robot, AsyncExitStack]] = field(default_factory=dict)

    async def robot(self, key: str | None) -> Robot:
        """Raises Unauthenticated without a key, EngineFailed where the cloud refuses it or is gone."""
        secret = key or self.key
        if not secret:
            raise Unauthenticated("no API key of the cloud was given", code="missing_api_key")
        if secret not in self._robots:
            if len(self._robots) >= MAX_KEYS:
                raise Overloaded(f"this bridge has {MAX_KEYS} clients already")
            stack = AsyncExitStack()
            opened = connect(self.url, secret, consent=self.consent, simulated=self.simulated, polls=True)
            self._robots[secret] = await stack.enter_async_context(opened), stack
        return self._robots[secret][0]

    async def act(self, key: str | None, given: dict[str, Any], at: float | None) -> tuple[Robot, Answer]:
        """`given` has `observation` and `images`. A connection that broke is made again with the next observation."""
        robot = await self.robot(key)
        try:
            return robot, await robot.act(given["observation"], images=given["images"], at=at)
        except AtollError:
            if robot.gone:
                await self.leave(key)
            raise

    async def leave(self, key: str | None) -> None:
        if (found := self._robots.pop(key or self.key, None)) is not None:
            await found[1].aclose()

    async def close(self) -> None:
        for key in list(self._robots):
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
