"""openpi's protocol: MessagePack with numpy arrays as maps of byte strings, metadata first, one reply a request.

Source: Physical-Intelligence/openpi, packages/openpi-client (msgpack_numpy, websocket_client_policy) and
serving/websocket_policy_server. A reply that is text is an error. The stock client connects to
`ws://host:port/atoll/v1/policies/<name>/openpi?consent=true` with an API key of Atoll's as its `api_key`. Observations
may have a `timestamp` (seconds); without one they are as old as their arrival.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.serve.adapters import observation_of
from atoll.physical.serve.wire import array, msgpack

MARK = b"__ndarray__"
SCALAR = b"__npgeneric__"


class OpenPi:
    """The dialect of one connection."""

    def __init__(self) -> None:
        self._seq = 0
        self._manifest: dict[str, Any] = {}

    def read(self, frame: bytes | str) -> dict[str, Any]:
        if isinstance(frame, str):
            raise InvalidRequest("openpi's messages are binary")
        given = decode(frame)
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise InvalidRequest("an observation is a map by name")
        self._seq += 1
        message = {"type": "observe", "seq": self._seq, **observation_of(self._manifest, _flat(given))}
        return message if "timestamp" not in given else {**message, "time": given["timestamp"]}

    def write(self, message: dict[str, Any]) -> bytes | str | None:
        kind = message["type"]
        if kind == "metadata":
            self._manifest = message["manifest"]
            return encode(message)
        if kind == "error":
            return f"{message['code']}: {message['message']}"
        if message.get("seq") is None:
            return None
        told = {name: message[name] for name in ("actions", "time", "dt", "dropped")}
        told |= {"safe": message.get("reason", ""), "limited": message.get("limited", [])}
        return encode({**told, "server_timing": {"infer_ms": message.get("infer_ms", 0.0)}})


def encode(message: Any) -> bytes:
    return msgpack().packb(message, default=_pack)


def decode(frame: bytes) -> Any:
    """Raises InvalidRequest; arrays of objects, which pickle would be needed for, are among what is refused."""
    try:
        return msgpack().unpackb(frame, object_hook=_unpack)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"the message is not MessagePack: {error}") from None


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {MARK: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _unpack(value: dict[Any, Any]) -> Any:
    if MARK in value:
        return array({name.decode(): value.get(name) for name in (b"dtype", b"shape", b"data")}, "observation")
    return value.get(b"data") if SCALAR in value else value


def _flat(given: dict[str, Any], under: str = "") -> dict[str, Any]:
    """Nested maps as one, with '/' between."""
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat |= _flat(value, f"{under}{name}/") if isinstance(value, dict) else {f"{under}{name}": value}
    return flat
