"""A robot's side of the WebSocket: `async with connect(url, key, consent=True) as robot: await robot.act(seen)`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.http11 import Response

from atoll.core.errors import AtollError, EngineFailed, InvalidRequest, from_wire
from atoll.physical.serve.wire import array, pack, unpack

CONNECT_S = 10.0

Listen = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """Carry out row i of `actions` (n, a) at `time` + i `dt` on this client's clock. `safe` says why they are not the
    policy's (empty: they are). `limited` are the limits met, `dropped` the observations that were not answered."""

    actions: np.ndarray
    time: float
    dt: float
    safe: str
    infer_ms: float
    limited: tuple[str, ...]
    dropped: tuple[int, ...]


class Robot:
    """`metadata` is what the service said first. What it says unasked (safe actions of the watchdog, a stop) is given
    to `listen`."""

    def __init__(self, socket: ClientConnection, metadata: dict[str, Any], listen: Listen) -> None:
        self.metadata = metadata
        self._socket, self._listen = socket, listen
        self._seq = 0
        self._owed: dict[int | str, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())

    @property
    def gone(self) -> bool:
        """The connection is closed."""
        return self._reading.done()

    async def act(
        self,
        observation: Any,
        *,
        images: Mapping[str, np.ndarray] | None = None,
        at: float | None = None,
        deadline_ms: float | None = None,
    ) -> Answer:
        """Actions for an observation: (o,) numbers, or a map by channel. `at` is when it was made, on any clock of this
        client's that only goes forward. Raises AtollError where it is refused or the service is gone."""
        self._seq += 1
        message: dict[str, Any] = {"type": "observe", "seq": self._seq, "time": time.monotonic() if at is None else at}
        message["observation"] = _plain(observation)
        if images:
            message["images"] = dict(images)
        if deadline_ms is not None:
            message["deadline_ms"] = deadline_ms
        told = await self._ask(self._seq, message)
        limited = tuple(f"{hit['dimension']}: {hit['limit']}" for hit in told.get("limited", ()))
        actions = array(told["actions"], "actions")
        timing = told["time"], told["dt"], told.get("reason", ""), told.get("infer_ms", 0.0)
        return Answer(actions, *timing, limited, tuple(told["dropped"]))

    async def begin(self, *, simulated: bool = False, polls: bool = False) -> None:
        """Agree that the robot moves; needed again after a stop was released. `simulated`: it is a simulation, whose
        clock may stand still. `polls`: what is said unasked does not reach it."""
        await self._ask("ready", {"type": "begin", "consent": True, "simulated": simulated, "polls": polls})

    async def stop(self, reason: str = "") -> str:
        """Emergency stop. The token that releases it; empty where it was stopped already and this key is no admin's."""
        return str((await self._ask("token", {"type": "stop", "reason": reason}))["token"])

    async def reset(self, token: str) -> None:
        await self._ask("released", {"type": "reset", "token": token})

    async def close(self) -> None:
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading

    async def _ask(self, answer: int | str, message: dict[str, Any]) -> dict[str, Any]:
        """Send, and wait for the message of that sequence number or type."""
        future = self._owed[answer] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send(pack(message))
            return await future
        except ConnectionClosed as closed:
            raise _gone(closed) from None
        finally:
            self._owed.pop(answer, None)

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                self._hear(unpack(frame))
            raise EngineFailed("the service has closed the connection")
        except ConnectionClosed as closed:
            self._fail(_gone(closed))
        except AtollError as error:
            self._fail(error)

    def _hear(self, message: dict[str, Any]) -> None:
        kind, seq = message["type"], message.get("seq")
        for dropped in message.get("dropped", ()):
            self._settle(dropped, InvalidRequest("a newer observation replaced this one", code="replaced"))
        if kind == "error":
            error = from_wire({**message, "type": message.get("kind")})
            self._settle(seq if seq is not None else next(iter(self._owed), None), error)
        elif seq is not None:
            self._settle(seq, message)
        elif kind in self._owed:
            self._settle(kind, message)
        else:
            self._listen(message)

    def _settle(self, answer: Any, outcome: dict[str, Any] | AtollError) -> None:
        future = self._owed.pop(answer, None)
        if future is not None and not future.done():
            future.set_exception(outcome) if isinstance(outcome, AtollError) else future.set_result(outcome)

    def _fail(self, error: AtollError) -> None:
        for answer in list(self._owed):
            self._settle(answer, error)


@asynccontextmanager
async def connect(
    url: str,
    key: str,
    *,
    consent: bool = False,
    simulated: bool = False,
    polls: bool = False,
    listen: Listen = lambda _: None,
) -> AsyncIterator[Robot]:
    """`url` is that of the policy, ws://host:port/atoll/v1/policies/<name>/act. Without `consent` nothing moves until
    `begin`. Raises AtollError where it cannot be had."""
    headers = {"authorization": f"Bearer {key}"}
    options: dict[str, Any] = {"compression": None, "max_size": None, "open_timeout": CONNECT_S, "proxy": None}
    try:
        socket = await open_socket(url, additional_headers=headers, **options)
    except InvalidStatus as refused:
        raise _refused(refused.response) from None
    except (OSError, TimeoutError, WebSocketException) as error:
        raise EngineFailed(f"no service answers at {url}: {error}") from None
    async with socket:
        robot = Robot(socket, await _metadata(socket), listen)
        try:
            if consent:
                await robot.begin(simulated=simulated, polls=polls)
            yield robot
        finally:
            await robot.close()


def _refused(response: Response) -> AtollError:
    """The service's own error; where something else answers, what it says."""
    body = (response.body or b"").decode("utf-8", "replace")
    with suppress(ValueError, TypeError, KeyError):
        return from_wire({**json.loads(body)["error"]})
    return EngineFailed(f"no policy is served there: {response.status_code} {body[:200]}")


async def _metadata(socket: ClientConnection) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CONNECT_S):
            return unpack(await socket.recv())
    except ConnectionClosed as closed:
        raise _gone(closed) from None
    except TimeoutError:
        raise EngineFailed(f"the service has said nothing in {CONNECT_S:g} s") from None


def _plain(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {name: _numbers(value, name) for name, value in observation.items()}
    return _numbers(observation, "observation")


def _numbers(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value, np.float32)
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(f"'{name}' must be numbers", param=name) from None


def _gone(closed: ConnectionClosed) -> EngineFailed:
    why = closed.rcvd.reason if closed.rcvd else ""
    return EngineFailed(f"the service has closed the connection: {why or 'no reason given'}")
