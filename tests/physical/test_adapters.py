"""Clients of other protocols, written here as those projects publish them, move the robot within the same limits."""

from __future__ import annotations

import asyncio
import io
import pickle
import sys
import types
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgpack
import numpy as np
import pytest
import torch
import zmq.asyncio
from served import ADMIN, MANIFEST, free_port, mlp, policies
from support import SECRET
from websockets.asyncio.client import connect as websocket

from atoll.core.errors import InvalidRequest, Unauthenticated
from atoll.core.manifest import Channel, Manifest
from atoll.physical.serve.adapters import groot, lerobot, observation_of
from atoll.physical.serve.adapters.bridge import Cloud
from atoll.physical.serve.service import Service

JOINTS, GOAL = np.zeros(2, np.float32), np.array([0.5, -0.5], np.float32)
CHUNKED = replace(MANIFEST, chunk=3)


@asynccontextmanager
async def bridge(
    folder: Path, serve: Callable[..., Any], manifest: Manifest = CHUNKED, **options: Any
) -> AsyncIterator[tuple[Service, int]]:
    """A bridge to the policy `arm`; the service, and the port of the bridge."""
    async with policies(folder, mlp(manifest)) as (made, url):
        port = free_port()
        task = asyncio.create_task(serve(Cloud(url, consent=True, simulated=True, **options), "127.0.0.1", port))
        try:
            yield made, port
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def openpi_pack(value: Any) -> Any:
    """packages/openpi-client/src/openpi_client/msgpack_numpy.py: pack_array."""
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return value


def openpi_unpack(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    return value


@asynccontextmanager
async def openpi_client(url: str) -> AsyncIterator[tuple[dict[str, Any], Callable[..., Any]]]:
    """packages/openpi-client/src/openpi_client/websocket_client_policy.py: the metadata, and `infer`."""
    address = url.replace("/act", "/openpi?consent=true")
    headers = {"Authorization": f"Api-Key {SECRET}"}
    async with websocket(address, additional_headers=headers, compression=None) as socket:

        async def infer(seen: dict[str, Any]) -> Any:
            await socket.send(msgpack.packb(seen, default=openpi_pack))
            frame = await asyncio.wait_for(socket.recv(), 10)
            return frame if isinstance(frame, str) else msgpack.unpackb(frame, object_hook=openpi_unpack)

        yield msgpack.unpackb(await socket.recv()), infer


async def test_a_stop_is_the_next_answer_and_goes_on_from_the_end_of_the_chunk(tmp_path: Path):
    """Nothing can be told to these clients meanwhile, so they carry out what they have: it is never long."""
    long = replace(MANIFEST, chunk=50)
    async with policies(tmp_path, mlp(long)) as (made, url), openpi_client(url) as (metadata, infer):
        assert metadata["polled"] == 25
        seen = {"joints": JOINTS, "goal": np.array([2.0, -2.0], np.float32)}
        given = (await infer({**seen, "timestamp": 1.0}))["actions"]
        assert given[-1] == pytest.approx([1.0, -1.0])
        assert len(given) == 25
        await made.stop("arm", ADMIN, "drill")
        held = await infer({**seen, "timestamp": 1.5})
        assert held["safe"] == "stopped"
        assert held["actions"][0] == pytest.approx(given[-1])
    (tmp_path / "bridge").mkdir()
    async with bridge(tmp_path / "bridge", groot.serve, long) as (made, port), groot_client(port) as call:
        config = await call("get_modality_config")
        assert config["action"]["as_json"]["delta_indices"] == list(range(25))
        action, _ = await call("get_action", groot_seen(1.0))
        assert action["joints"].shape == (1, 25, 2)
        await made.stop("arm", ADMIN, "drill")
        held, info = await call("get_action", groot_seen(1.5))
        assert info["safe"] == "stopped"
        assert held["joints"][0, 0] == pytest.approx(action["joints"][0, -1], abs=0.04)


async def test_openpi(tmp_path: Path):
    async with policies(tmp_path, mlp(CHUNKED)) as (made, url), openpi_client(url) as (metadata, infer):
        assert metadata["manifest"]["task"] == "two-joints"
        seen = {"observation/joints": JOINTS, "observation/goal": GOAL, "prompt": "go", "timestamp": 1.0}
        told = await infer(seen)
        assert told["actions"][:, 0] == pytest.approx([0.04, 0.08, 0.12])
        assert told["server_timing"]["infer_ms"] > 0
        assert "takes no 'observation/wrist'" in await infer({"observation/wrist": JOINTS})
        objects = {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": [0]}
        assert "dtype" in await infer({"observation/joints": objects, "observation/goal": GOAL})
        await made.stop("arm", made.served("arm").lines.copy().pop().by, "drill")
        seen = {"observation": {"joints": JOINTS, "goal": GOAL}, "timestamp": 1.06}
        assert (await infer(seen))["safe"] == "stopped"


@asynccontextmanager
async def groot_client(port: int) -> AsyncIterator[Callable[..., Any]]:
    """gr00t/policy/server_client.py: PolicyClient.call_endpoint and MsgSerializer."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"tcp://127.0.0.1:{port}")

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            output = io.BytesIO()
            np.save(output, value, allow_pickle=False)
            return {"__ndarray_class__": True, "as_npy": output.getvalue()}
        return value

    def decode(value: dict[Any, Any]) -> Any:
        if "__ndarray_class__" in value:
            return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
        return value

    async def call(endpoint: str, data: Any = None, token: str | None = SECRET) -> Any:
        request = {"endpoint": endpoint, "data": data} | ({"api_token": token} if token else {})
        async with asyncio.timeout(10):
            await socket.send(msgpack.packb(request, default=encode))
            return msgpack.unpackb(await socket.recv(), object_hook=decode)

    try:
        yield call
    finally:
        socket.close()
        context.term()


def groot_seen(at: float) -> dict[str, Any]:
    state = {"joints": JOINTS[None, None], "goal": GOAL[None, None]}
    words = {"annotation.human.task_description": [["reach"]]}
    return {"observation": {"state": state, "language": words, "timestamp": at}, "options": None}


async def test_groot(tmp_path: Path):
    async with bridge(tmp_path, groot.serve) as (made, port), groot_client(port) as call:
        assert (await call("ping", token=None))["status"] == "ok"
        assert "no API key" in (await call("get_action", groot_seen(1.0), token=None))["error"]
        assert "invalid_api_key" in (await call("get_action", groot_seen(1.0), token="sk-guess"))["error"]
        config = await call("get_modality_config")
        assert config["action"]["as_json"] == {"delta_indices": [0, 1, 2], "modality_keys": ["joints"]}
        action, info = await call("get_action", groot_seen(1.0))
        assert action["joints"].shape == (1, 3, 2)
        assert action["joints"][0, :, 0] == pytest.approx([0.04, 0.08, 0.12])
        assert "joints[0]: velocity" in info["limited"]
        assert "no endpoint 'kill'" in (await call("kill"))["error"]
        assert "takes no 'state.knee'" in (await call("get_action", {"state.knee": JOINTS[None]}))["error"]
        older = {"state.joints": JOINTS[None], "state.goal": GOAL[None], "timestamp": 2.0}
        assert (await call("get_action", older))["action.joints"].shape == (3, 2)
        [line] = made.served("arm").lines
        await made.stop("arm", line.by, "drill")
        assert (await call("get_action", groot_seen(3.0)))[1]["safe"] == "stopped"
        assert (await call("reset", {"options": None})) == {}


async def test_groot_takes_no_pickle(tmp_path: Path):
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    request = {"endpoint": "get_action", "data": {"state": {"__ndarray_class__": True, "as_npy": file.getvalue()}}}
    told = msgpack.unpackb(await groot.answer(Cloud("ws://nowhere", "key"), msgpack.packb(request)))
    assert "dtype" in told["error"]
    told = msgpack.unpackb(await groot.answer(Cloud("ws://nowhere", "key"), b"\xc1"))
    assert "not MessagePack" in told["error"]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"endpoint": []}, "no endpoint '[]'"),
        ({"endpoint": {}}, "no endpoint"),
        ({"endpoint": "get_action", "data": 5}, "'data' must be a map"),
        ({"endpoint": "reset", "data": [1]}, "'data' must be a map"),
        ({"endpoint": "get_action", "data": {"observation": {b"state": 1}}}, "a map by name"),
        ({"endpoint": "get_action", "data": {b"state": 1}}, "a map by name"),
        ({"data": {"state.joints": 1}, "api_token": []}, "API key"),
        ({"data": {"state.joints": 1}, "api_token": "sk\r\nx-a: b"}, "API key"),
        ({"data": {"state.joints": 1}, "api_token": "schlüssel"}, "API key"),
        ({"data": {"state.joints": {"__ndarray_class__": True, "as_npy": 5}}}, "not MessagePack with arrays"),
        ({"data": {"state.joints": {"__ndarray_class__": True, "as_npy": b"\x93NUMPY\x09\x00"}}}, "not MessagePack"),
        *[
            ({"data": {"__ndarray_class__": True, "as_npy": b"\x93NUMPY\x01\x00" + header}}, "is no header")
            for header in (b"\x06\x00  x\n y", b"\x03\x00(((", b"\x28\x23" + b"-" * 9000)
        ],
    ],
)
async def test_what_makes_no_sense_is_answered_by_groots_error(request_: dict[str, Any], says: str):
    told = msgpack.unpackb(await groot.answer(Cloud("ws://127.0.0.1:9"), msgpack.packb(request_)))
    assert says in told["error"]


async def test_a_fault_of_the_bridge_is_an_answer_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(groot.ENDPOINTS, "ping", lambda *_: 1 / 0)
    told = msgpack.unpackb(await groot.answer(Cloud("ws://nowhere"), msgpack.packb({"endpoint": "ping"})))
    assert "internal_error" in told["error"]


async def test_what_is_no_observation_leaves_the_bridge_up(tmp_path: Path):
    async with bridge(tmp_path, groot.serve) as (_, port), groot_client(port) as call:
        for value in ("up", {"a": [1]}, [[1], [1, 2]], None, [2**63]):
            assert "joints" in (await call("get_action", {"state.joints": value, "state.goal": GOAL[None]}))["error"]
        never = {**groot_seen(1.0)["observation"], "timestamp": float("nan")}
        assert "'time'" in (await call("get_action", {"observation": never}))["error"]
        assert (await call("get_action", groot_seen(1.0)))[0]["joints"].shape == (1, 3, 2)


HELPERS = "lerobot.async_inference.helpers"


@dataclass
class TimedObservation:
    timestamp: float
    timestep: int
    observation: dict[str, Any]
    must_go: bool = False


@dataclass
class TimedAction:
    timestamp: float
    timestep: int
    action: Any


@dataclass
class RemotePolicyConfig:
    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: dict[str, Any]
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes with LeRobot's fields under LeRobot's names, so that pickles are as its client makes them."""
    module = types.ModuleType(HELPERS)
    for cls in (TimedObservation, TimedAction, RemotePolicyConfig):
        monkeypatch.setattr(cls, "__module__", HELPERS)
        setattr(module, cls.__name__, cls)
    for name in ("lerobot", "lerobot.async_inference"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, HELPERS, module)


def protobuf(*fields: tuple[int, int | bytes]) -> bytes:
    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    wire = b""
    for number, value in fields:
        kind = 0 if isinstance(value, int) else 2
        wire += varint(number << 3 | kind) + (varint(value) if isinstance(value, int) else varint(len(value)) + value)
    return wire


FEATURES = {"observation.state": {"dtype": "float32", "shape": (4,), "names": ["a.pos", "b.pos", "c.pos", "d.pos"]}}
RAW = {"a.pos": 0.0, "b.pos": np.float32(0.0), "c.pos": 0.5, "d.pos": -0.5, "task": "reach"}


async def test_lerobot(tmp_path: Path, stock: None):
    async with (
        bridge(tmp_path, lerobot.serve, key=SECRET) as (made, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        unary = {name: channel.unary_unary(f"/transport.AsyncInference/{name}") for name in
                 ("Ready", "SendPolicyInstructions", "GetActions")}  # fmt: skip
        send = channel.stream_unary("/transport.AsyncInference/SendObservations")
        assert await unary["Ready"](b"", timeout=10) == b""
        config = RemotePolicyConfig("act", "user/model", FEATURES, 2)
        await unary["SendPolicyInstructions"](protobuf((1, pickle.dumps(config))), timeout=10)

        async def observe(raw: dict[str, Any], at: float, step: int) -> None:
            data = pickle.dumps(TimedObservation(at, step, raw))
            pieces = [(1, data[:50]), (2, data[50:100]), (3, data[100:])]
            await send(iter([protobuf((1, kind), (2, part)) for kind, part in pieces]), timeout=10)

        await observe(RAW, 1.0, 7)
        answer = await unary["GetActions"](b"", timeout=10)
        actions = pickle.loads(answer[answer.index(b"\x80\x02") :])
        assert [(a.timestep, round(a.timestamp, 3)) for a in actions] == [(7, 1.0), (8, 1.02)]
        assert [type(a).__name__ for a in actions] == ["TimedAction"] * 2
        assert actions[0].action.dtype == torch.float32
        assert actions[0].action.tolist() == pytest.approx([0.04, -0.04])
        assert await unary["GetActions"](b"", timeout=10) == b""
        await observe({"a.pos": 0.0}, 1.1, 9)
        with pytest.raises(grpc.aio.AioRpcError, match=r"lacks 'b\.pos'"):
            await unary["GetActions"](b"", timeout=10)
        [line] = made.served("arm").lines
        await made.stop("arm", line.by, "drill")
        await observe(RAW, 1.2, 10)
        answer = await unary["GetActions"](b"", timeout=10)
        held = pickle.loads(answer[answer.index(b"\x80\x02") :])
        assert [a.timestep for a in held] == [11, 12]
        assert held[-1].action.tolist() == pytest.approx([0.12, -0.12])


async def test_lerobot_runs_nothing_that_a_pickle_names(tmp_path: Path, stock: None):
    class Bomb:
        def __reduce__(self) -> Any:
            return (exec, (f"open({str(tmp_path / 'hit')!r}, 'w')",))

    async with (
        bridge(tmp_path, lerobot.serve, key=SECRET) as (_, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        told = channel.unary_unary("/transport.AsyncInference/SendPolicyInstructions")
        with pytest.raises(grpc.aio.AioRpcError, match="no feature"):
            await told(protobuf((1, pickle.dumps(Bomb()))), timeout=10)
        raw = {**RAW, "c.pos": Bomb()}
        send = channel.stream_unary("/transport.AsyncInference/SendObservations")
        await told(protobuf((1, pickle.dumps(RemotePolicyConfig("act", "", FEATURES, 2)))), timeout=10)
        await send(iter([protobuf((1, 3), (2, pickle.dumps(TimedObservation(1.0, 1, raw))))]), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError, match=r"'c\.pos' must be a number"):
            await channel.unary_unary("/transport.AsyncInference/GetActions")(b"", timeout=10)
    assert not (tmp_path / "hit").exists()


NAN, UNITS = float("nan"), ["a.pos", "b.pos", "c.pos", "d.pos"]


@pytest.mark.parametrize(
    ("features", "count", "says"),
    [
        (FEATURES, "many", "'actions_per_chunk'"),
        (FEATURES, -1, "'actions_per_chunk'"),
        (FEATURES, NAN, "'actions_per_chunk'"),
        ({"observation.state": {"names": 5}}, 2, "'names'"),
        ({"observation.state": {"names": [[1]]}}, 2, "'names'"),
    ],
)
async def test_instructions_that_make_no_sense_are_an_invalid_argument(
    tmp_path: Path, stock: None, features: Any, count: Any, says: str
):
    config = pickle.dumps(RemotePolicyConfig("act", "", features, count))
    async with policies(tmp_path) as (_, url):
        made = lerobot.Bridge(Cloud(url, SECRET))
        with pytest.raises(InvalidRequest, match=says):
            await made.send_policy_instructions(protobuf((1, config)), Caller())
        await made.cloud.close()


@dataclass
class Caller:
    """A gRPC context, as far as it is looked at."""

    key: str = SECRET

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),)


async def test_observations_that_make_no_sense_are_an_invalid_argument(tmp_path: Path, stock: None):
    async with (
        bridge(tmp_path, lerobot.serve, key=SECRET) as (_, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        method = "/transport.AsyncInference/"
        features = {**FEATURES, "observation.images.state": {}}
        told = channel.unary_unary(f"{method}SendPolicyInstructions")
        send = channel.stream_unary(f"{method}SendObservations")
        for observation, seen, says in [
            (TimedObservation(None, 1, RAW), FEATURES, "'timestamp'"),
            (TimedObservation(NAN, 1, RAW), FEATURES, "'timestamp'"),
            (TimedObservation(1.0, "x", RAW), FEATURES, "'timestep'"),
            (TimedObservation(1.0, 1, {**RAW, "a.pos": 10**400}), FEATURES, "'a.pos'"),
            (TimedObservation(1.0, 1, {**RAW, "state": [0.0] * 4}), features, "'state'"),
        ]:
            await told(protobuf((1, pickle.dumps(RemotePolicyConfig("act", "", seen, 2)))), timeout=10)
            await send(iter([protobuf((1, 3), (2, pickle.dumps(observation)))]), timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match=says) as refused:
                await channel.unary_unary(f"{method}GetActions")(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_of_too_many_clients_the_one_that_was_silent_longest_is_forgotten(tmp_path: Path):
    async with policies(tmp_path) as (_, url):
        made = lerobot.Bridge(Cloud(url))
        made.clients = {f"ipv4:127.0.0.1:{i}": lerobot.Client() for i in range(1, lerobot.MAX_CLIENTS + 2)}
        with pytest.raises(Unauthenticated, match="unknown"):
            await made.get_actions(b"", Caller("sk-guess"))
        assert next(iter(made.clients)) == Caller().peer()
        await made._client(Caller())
        assert next(iter(made.clients)) == "ipv4:127.0.0.1:3"
        assert [*made.clients][-1] == Caller().peer()
        await made.cloud.close()


async def test_lerobot_without_a_key_is_refused(tmp_path: Path):
    async with (
        bridge(tmp_path, lerobot.serve) as (_, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        ready = channel.unary_unary("/transport.AsyncInference/Ready")
        with pytest.raises(grpc.aio.AioRpcError, match="no API key"):
            await ready(b"", timeout=10)
        assert await ready(b"", timeout=10, metadata=(("authorization", f"Bearer {SECRET}"),)) == b""


def test_names_of_other_protocols():
    manifest = {"observation": [{"name": "joints"}], "images": [{"name": "front"}]}
    flat = {"observation/joints": 1, "observation.images.front": 2, "prompt": "x", "annotation.human.task": "y"}
    assert observation_of(manifest, flat) == {"observation": {"joints": 1}, "images": {"front": 2}}
    assert observation_of(manifest, {"observation.state": [3]}) == {"observation": [3], "images": {}}
    with pytest.raises(InvalidRequest, match="not both"):
        observation_of(manifest, {"state": 1, "joints": 2})
    assert Channel("state", 1).name == "state"
