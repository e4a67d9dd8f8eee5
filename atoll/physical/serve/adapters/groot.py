"""GR00T's policy service: ZeroMQ REQ/REP, MessagePack, `{endpoint, data, api_token}`.

Source: NVIDIA/Isaac-GR00T, gr00t/policy/server_client.py (N1.6 and later: nested observations, replies of action and
info) and gr00t/eval/service.py (N1.5: flat ones, replies of the action). Arrays are `.npy` files without pickle, or as
the package msgpack-numpy writes them; a reply is in the form of its request. `api_token` is an API key of Atoll's. What
the service says of `kill` is not offered.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.lib.format as npy

from atoll.core.errors import AtollError, InvalidRequest, NotInstalled, SetupError, Unsupported
from atoll.physical.serve.adapters import observation_of
from atoll.physical.serve.adapters.bridge import Cloud, channels_of
from atoll.physical.serve.wire import array, msgpack

log = logging.getLogger("atoll.physical")

NPY, MODALITY = "__ndarray_class__", "__ModalityConfig_class__"
MAX_MESSAGE = 64 << 20


async def serve(cloud: Cloud, host: str, port: int) -> None:
    """Answer until cancelled. Raises SetupError where it cannot listen, NotInstalled."""
    zmq, sockets = _zmq()
    context = sockets.Context()
    socket = context.socket(zmq.REP)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    socket.setsockopt(zmq.LINGER, 0)
    try:
        try:
            socket.bind(f"tcp://{host}:{port}")
        except zmq.ZMQError as error:
            raise SetupError(f"cannot listen on {host}:{port}: {error}") from None
        while True:
            await socket.send(await answer(cloud, await socket.recv()))
    finally:
        socket.close()
        context.term()
        await cloud.close()


async def answer(cloud: Cloud, request: bytes) -> bytes:
    """The reply to one request; an error is a reply too."""
    form = Form()
    try:
        told = form.decode(request)
        endpoint, data = told.get("endpoint", "get_action"), told.get("data") or {}
        if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
            raise Unsupported(f"there is no endpoint '{endpoint}'; there are: {', '.join(ENDPOINTS)}")
        if not isinstance(data, Mapping):
            raise InvalidRequest("'data' must be a map", param="data")
        reply = await ENDPOINTS[endpoint](cloud, told.get("api_token"), data, form)
    except AtollError as error:
        reply = {"error": f"{error.code}: {error.message}"}
    except Exception:
        log.exception("a request of GR00T's protocol failed")
        reply = {"error": "internal_error: the bridge's log says more"}
    return form.encode(reply)


async def _ping(cloud: Cloud, key: Any, data: Mapping[str, Any], form: Form) -> Any:
    return {"status": "ok", "message": "Server is running"}


async def _get_action(cloud: Cloud, key: Any, data: Mapping[str, Any], form: Form) -> Any:
    nested = "observation" in data
    given = data["observation"] if nested else data
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise InvalidRequest("'observation' must be a map by name", param="observation")
    robot = await cloud.robot(key)
    flat = _now(given)
    stamp = flat.pop("timestamp", None)
    at = float(stamp) if isinstance(stamp, int | float) else None
    robot, told = await cloud.act(key, observation_of(robot.metadata["manifest"], flat), at)
    parts = channels_of(robot, told.actions)
    if not nested:
        return {f"action.{name}": part for name, part in parts.items()}
    info = {"safe": told.safe, "limited": list(told.limited), "infer_ms": told.infer_ms}
    return [{name: part[None] for name, part in parts.items()}, info]


async def _reset(cloud: Cloud, key: Any, data: Mapping[str, Any], form: Form) -> Any:
    """A new session: what was commanded before is forgotten, limits begin from where the robot is measured."""
    await cloud.leave(key)
    await cloud.robot(key)
    return {}


async def _get_modality_config(cloud: Cloud, key: Any, data: Mapping[str, Any], form: Form) -> Any:
    metadata = (await cloud.robot(key)).metadata
    manifest = metadata["manifest"]
    names = {
        "state": [channel["name"] for channel in manifest["observation"]],
        "video": [image["name"] for image in manifest["images"]],
        "action": [channel["name"] for channel in manifest["action"]],
        "language": [],
    }
    steps = {"action": list(range(metadata["polled"]))}
    return {kind: form.modality(steps.get(kind, [0]), keys) for kind, keys in names.items() if keys}


ENDPOINTS = {
    "ping": _ping,
    "get_action": _get_action,
    "reset": _reset,
    "get_modality_config": _get_modality_config,
}


def _now(given: Mapping[str, Any]) -> dict[str, Any]:
    """The present of an observation: `state.x` and `video.x`, nested or not, without their axes of batch and time
    (state (1, T, D) or (T, D), video (1, T, H, W, C) or (T, H, W, C)), of which the last time counts."""
    flat: dict[str, Any] = {}
    for name, value in given.items():
        nested = isinstance(value, Mapping)
        flat |= {f"{name}.{inner}": part for inner, part in value.items()} if nested else {name: value}
    return {name: _last(name, value) for name, value in flat.items()}


def _last(name: str, value: Any) -> Any:
    kind = name.partition(".")[0]
    if kind not in ("state", "video") or not isinstance(value, np.ndarray):
        return value
    own = 1 if kind == "state" else 3
    while value.ndim > own:
        if len(value) != 1 and value.ndim == own + 2:
            raise InvalidRequest(f"'{name}' is a batch of {len(value)}; a robot is one", param=name)
        if not len(value):
            raise InvalidRequest(f"'{name}' is empty", param=name)
        value = value[-1]
    return value


class Form:
    """How arrays look in a request, and so in its reply."""

    npy = True

    def decode(self, request: bytes) -> dict[str, Any]:
        try:
            told = msgpack().unpackb(request, object_hook=self._unpack)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidRequest(f"the request is not MessagePack with arrays: {error}") from None
        if not isinstance(told, dict):
            raise InvalidRequest("a request is a map")
        return told

    def encode(self, reply: Any) -> bytes:
        return msgpack().packb(reply, default=self._pack)

    def modality(self, steps: list[int], keys: list[str]) -> dict[str, Any]:
        return {MODALITY: True, "as_json": {"delta_indices": steps, "modality_keys": keys}}

    def _unpack(self, value: dict[Any, Any]) -> Any:
        if NPY in value:
            return _npy(value["as_npy"])
        if value.get(b"nd") is True:
            self.npy = False
            parts = {"dtype": b"type", "shape": b"shape", "data": b"data"}
            return array({name: value.get(key) for name, key in parts.items()}, "array")
        return value

    def _pack(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} cannot be sent")
        if not self.npy:
            shape = list(value.shape)
            return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": shape, b"data": value.tobytes()}
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {NPY: True, "as_npy": file.getvalue()}


def _npy(data: bytes) -> Any:
    """An array from a `.npy` file; a list of words where it is of words. Raises ValueError."""
    file = io.BytesIO(data)
    read = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0}[npy.read_magic(file)[0]]
    try:
        shape, fortran, dtype = read(file)
    except (SyntaxError, TokenError, MemoryError):
        raise ValueError("the header of an array is no header") from None
    rest = data[file.tell() :]
    if dtype.kind == "U":
        return np.frombuffer(rest, dtype).tolist()
    made = array({"dtype": dtype.str, "shape": list(shape[::-1] if fortran else shape), "data": rest}, "array")
    return made.T if fortran else made


def _zmq() -> tuple[Any, Any]:
    try:
        import zmq
        import zmq.asyncio
    except ModuleNotFoundError:
        raise NotInstalled("'pyzmq' is not installed; run: pip install 'atoll[adapters]'") from None
    return zmq, zmq.asyncio
