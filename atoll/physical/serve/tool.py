"""A served policy as a tool for chats, agents and voice: its JSON schema, and calls that move a simulated robot.

Each call is an episode in a process of its own (`episode`) that connects like a robot, with a ticket instead of a key.
A model that calls tools must not be able to agree to motion itself, so consent is no argument: it is given by the
holder of the key, for a while (`Service.agree`) or with the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema import Draft202012Validator

from atoll.core.errors import DeadlineExceeded, EngineFailed, Forbidden, InvalidRequest, Overloaded, from_wire
from atoll.core.types import Key
from atoll.physical.serve.service import Service

EPISODE = "atoll.physical.serve.episode"
AT_ONCE = 2
LIMIT_S = 120.0
CONSENT = (
    "nobody has agreed that '{name}' moves for this key. Its holder may, for ten minutes: POST "
    '/atoll/v1/policies/{name}/consent with {{"consent": true}}, or: atoll policies consent {name}'
)


class Tools:
    """Implements `core.ports.Tools`. `address` is where this cloud's API is, as ws://host:port."""

    def __init__(self, service: Service, address: Callable[[], str]) -> None:
        self._service, self._address = service, address
        self._described: dict[str, dict[str, Any]] = {}
        self._running = 0

    async def tool(self, name: str) -> dict[str, Any]:
        served = self._service.served(name)
        if served.version not in self._described:
            self._described[served.version] = await self._episode({"action": "describe", "name": served.manifest.task})
        told = self._described[served.version]
        seed = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "description": "another start of the scene"}
        schema = {
            "type": "object",
            "properties": {**told["properties"], "seed": seed},
            "required": list(told["properties"]),
            "additionalProperties": False,
        }
        about = f"Move the simulated robot '{name}'. {told['about']} Returns what happened."
        function = {"name": f"move_{name.replace('.', '_')}", "description": about, "parameters": schema}
        return {"type": "function", "function": function}

    def agree(self, name: str, by: Key, seconds: float) -> float:
        return self._service.agree(name, by, seconds)

    async def run(self, name: str, arguments: Mapping[str, Any], by: Key, consent: bool) -> dict[str, Any]:
        schema = (await self.tool(name))["function"]["parameters"]
        try:
            error = next(iter(Draft202012Validator(schema).iter_errors(dict(arguments))), None)
        except RecursionError:
            raise InvalidRequest("the arguments are nested too deeply") from None
        if error is not None:
            where = ".".join(map(str, error.absolute_path))
            raise InvalidRequest(f"{where}: {error.message}" if where else error.message, param=where or None)
        served = self._service.served(name)
        if not (consent or self._service.agreed(name, by)):
            raise Forbidden(CONSENT.format(name=name), code="consent_required")
        asked = {key: float(value) for key, value in arguments.items() if key != "seed"}
        served.audit.write("tool", by.id, asked=asked)
        order = {"action": "run", "name": served.manifest.task, "asked": asked, "seed": int(arguments.get("seed", 0))}
        url = f"{self._address()}/atoll/v1/policies/{name}/act"
        return {"asked": asked, **await self._episode({**order, "url": url, "ticket": self._service.ticket(by)})}

    async def _episode(self, order: Mapping[str, Any]) -> dict[str, Any]:
        if self._running >= AT_ONCE:
            raise Overloaded(f"{AT_ONCE} episodes run already; try again in a moment", retry_after=2.0)
        self._running += 1
        try:
            async with asyncio.timeout(LIMIT_S):
                return await _process(order)
        except TimeoutError:
            raise DeadlineExceeded(f"the episode took more than {LIMIT_S:g} s") from None
        finally:
            self._running -= 1


async def _process(order: Mapping[str, Any]) -> dict[str, Any]:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", EPISODE, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        out, log = await child.communicate(json.dumps(order).encode() + b"\n")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    try:
        told = json.loads(out)
    except ValueError:
        last = log.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise EngineFailed(f"the episode ended with {child.returncode}: {last}") from None
    if "error" in told:
        raise from_wire(told["error"])
    return told["result"]
