"""LeRobot's asynchronous inference over gRPC, in its safe subset.

Source: huggingface/lerobot 0.4.4, async_inference/{policy_server, robot_client, helpers} and transport/services.proto.
The protocol carries Python pickles, which on the stock server run whatever they name (CVE-2026-25874). Here they are
read as data (`pickles`): observations of numbers, words and numpy arrays are understood, anything else is refused.
Which policy runs is decided by who promoted it, not by the client: a path or a device that it names is not heeded.

The stock client has no place for an API key, so the bridge has one; a client that can sends `authorization` metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from atoll.core.errors import AtollError, InvalidRequest, NotInstalled, SetupError, Unauthenticated
from atoll.physical.serve.adapters import WHOLE, observation_of
from atoll.physical.serve.adapters.bridge import Cloud
from atoll.physical.serve.adapters.pickles import Name, Record, read, write
from atoll.physical.serve.wire import number

SERVICE = "transport.AsyncInference"
PATIENCE_S = 2.0
MAX_OBSERVATION = 32 << 20
MAX_VARINT = 10
MAX_CLIENTS = 64
STATE, PICTURES = "observation.state", "observation.images."
BEGIN, MIDDLE, END = 1, 2, 3
CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
    409: "FAILED_PRECONDITION", 429: "RESOURCE_EXHAUSTED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE",
    503: "RESOURCE_EXHAUSTED", 504: "DEADLINE_EXCEEDED",
}  # fmt: skip
"""Of gRPC, by HTTP status."""


@dataclass(slots=True)
class Client:
    """What one client has told. `seen` is its newest observation; `names` the order of the numbers of its state.
    `moved`: it was given actions. From then on the step of an observation is that of the action under way."""

    names: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    count: int = 0
    seen: Record | None = None
    moved: bool = False
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class Bridge:
    """The methods of the service. Clients are told apart by their address, as the stock server does."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.clients: dict[str, Client] = {}

    async def ready(self, request: bytes, context: Any) -> bytes:
        await self.cloud.leave(_key(context))
        self.clients.pop(context.peer(), None)
        await self._client(context)
        return b""

    async def send_policy_instructions(self, request: bytes, context: Any) -> bytes:
        client, told = await self._client(context), read(_field(request, 1))
        state = told.state if isinstance(told, Record) else {}
        features = state.get("lerobot_features")
        if not isinstance(features, Mapping) or not isinstance(features.get(STATE), Mapping):
            raise InvalidRequest(f"the instructions have no feature '{STATE}'", param="lerobot_features")
        names = features[STATE].get("names") or ()
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise InvalidRequest(f"the 'names' of '{STATE}' must be a list of words", param="names")
        client.count = _whole(state, "actions_per_chunk", 0)
        client.names = tuple(names)
        client.pictures = tuple(n.removeprefix(PICTURES) for n in map(str, features) if n.startswith(PICTURES))
        return b""

    async def send_observations(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        client, data = await self._client(context), bytearray()
        async for request in requests:
            kind = _varint_field(request, 1)
            if kind == BEGIN:
                data.clear()
            data += _field(request, 2)
            if len(data) > MAX_OBSERVATION:
                raise InvalidRequest(f"an observation is at most {MAX_OBSERVATION} bytes")
            if kind == END:
                break
        told = read(bytes(data))
        if not isinstance(told, Record) or told.made_by.name != "TimedObservation":
            raise InvalidRequest("a TimedObservation was expected")
        client.seen = told
        client.arrived.set()
        return b""

    async def get_actions(self, request: bytes, context: Any) -> bytes:
        """Empty where no new observation comes in two seconds; the client then asks again."""
        client = await self._client(context)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await client.arrived.wait()
        except TimeoutError:
            return b""
        seen, client.seen = client.seen, None
        client.arrived.clear()
        if seen is None:
            return b""
        robot = await self.cloud.robot(_key(context))
        flat = self._flat(client, seen.state.get("observation"))
        at, step = number(seen.state, "timestamp"), _whole(seen.state, "timestep") + client.moved
        robot, told = await self.cloud.act(_key(context), observation_of(robot.metadata["manifest"], flat), at)
        client.moved = True
        kind = Name(seen.made_by.module, "TimedAction")
        rows = enumerate(islice(told.actions, client.count or None))
        actions = ({"timestamp": at + i * told.dt, "timestep": step + i, "action": row} for i, row in rows)
        return _bytes_field(1, write((kind, action) for action in actions))

    def _flat(self, client: Client, observation: Any) -> dict[str, Any]:
        """The state in the order that the client told, and its pictures."""
        if not isinstance(observation, Mapping):
            raise InvalidRequest("the observation is not a map", param="observation")
        missing = [name for name in (*client.names, *client.pictures) if name not in observation]
        if missing:
            raise InvalidRequest(f"the observation lacks '{missing[0]}'", param=missing[0])
        pictures = {name: observation[name] for name in client.pictures}
        for name, value in pictures.items():
            if not isinstance(value, np.ndarray):
                raise InvalidRequest(f"'{name}' must be a numpy array", param=name)
        numbers = [number(observation, name) for name in client.names]
        return {WHOLE: np.array(numbers, np.float32), **pictures}

    async def _client(self, context: Any) -> Client:
        """Raises Unauthenticated, or what else the cloud refuses with, before anything that was sent is looked at."""
        if not (_key(context) or self.cloud.key):
            raise Unauthenticated("no API key: send 'authorization' metadata, or give the bridge one")
        await self.cloud.robot(_key(context))
        client = self.clients[context.peer()] = self.clients.pop(context.peer(), None) or Client()
        while len(self.clients) > MAX_CLIENTS:
            del self.clients[next(iter(self.clients))]
        return client


async def serve(cloud: Cloud, host: str, port: int) -> None:
    """Answer until cancelled. Raises SetupError where it cannot listen, NotInstalled."""
    grpc = _grpc()
    bridge = Bridge(cloud)
    unary = {
        "Ready": bridge.ready,
        "SendPolicyInstructions": bridge.send_policy_instructions,
        "GetActions": bridge.get_actions,
    }
    handlers = {name: grpc.unary_unary_rpc_method_handler(_told(grpc, method)) for name, method in unary.items()}
    handlers["SendObservations"] = grpc.stream_unary_rpc_method_handler(_told(grpc, bridge.send_observations))
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_OBSERVATION), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise SetupError(f"cannot listen on {host}:{port}: {error}") from None
    await server.start()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(0)
        await cloud.close()


def _told(grpc: Any, method: Any) -> Any:
    """Our errors as gRPC's."""

    async def handle(request: Any, context: Any) -> Any:
        try:
            return await method(request, context)
        except AtollError as error:
            code = getattr(grpc.StatusCode, CODES.get(error.status, "INTERNAL"))
            await context.abort(code, f"{error.code}: {error.message}")

    return handle


def _whole(state: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = state.get(name, default)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise InvalidRequest(f"'{name}' must be a whole number, 0 or more", param=name)
    return value


def _key(context: Any) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization" and value[:7].lower() == "bearer ":
            return value[7:]
    return None


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field (protobuf's wire types 0 and 2, which are all that the service has)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif tag & 7 == 2:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise InvalidRequest("the message is cut short")
            yield tag >> 3, message[at : at + size]
            at += size
        else:
            raise InvalidRequest("the message has a field that the service does not know")


def _field(message: bytes, number: int) -> bytes:
    return next((value for found, value in _fields(message) if found == number and isinstance(value, bytes)), b"")


def _varint_field(message: bytes, number: int) -> int:
    return next((value for found, value in _fields(message) if found == number and isinstance(value, int)), 0)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(message[at : at + MAX_VARINT]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise InvalidRequest("the message is cut short")


def _bytes_field(number: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def _grpc() -> Any:
    try:
        import grpc
        import grpc.aio
    except ModuleNotFoundError:
        raise NotInstalled("'grpcio' is not installed; run: pip install 'atoll[adapters]'") from None
    return grpc
