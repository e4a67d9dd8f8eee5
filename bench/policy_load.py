"""The robot of policy.py: asks for an action at each tick of a fixed rate, one at a time; prints one JSON line.

`python policy_load.py '{"client": "openpi", "url": ..., "key": ..., "hz": 200, "seconds": 10, "stops": 0}'`, in the
environment of peers/openpi.txt. `openpi` is the stock client; `native` is as little on top of the same library. With
`stops`, a second connection pulls the emergency stop that often, and releases it.
"""

import json
import socket
import struct
import sys
import time
from collections import deque

import msgpack
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

WARM = 200
OBSERVATIONS = np.random.default_rng(1).standard_normal((1000, 17)).astype(np.float32)


class OpenPi:
    def __init__(self, url: str, key: str) -> None:
        self.client = WebsocketClientPolicy(url, api_key=key or None)

    def ask(self, number: int, deadline_ms: float) -> str:
        told = self.client.infer({"observation": OBSERVATIONS[number % 1000]})
        assert told["actions"].shape[-1] == 6
        return told.get("safe", "")


class Socket:
    """A WebSocket over a blocking socket, on the library's protocol without I/O."""

    def __init__(self, url: str, key: str) -> None:
        uri = parse_uri(url)
        self.wire = socket.create_connection((uri.host, uri.port))
        self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.protocol = ClientProtocol(uri, max_size=None)
        request = self.protocol.connect()
        request.headers["authorization"] = f"Bearer {key}"
        self.protocol.send_request(request)
        self.heard: deque[bytes] = deque()
        self._flush()
        while self.protocol.state is State.CONNECTING:
            self._read()

    def send(self, data: bytes) -> None:
        self.protocol.send_binary(data)
        self._flush()

    def recv(self) -> bytes:
        while not self.heard:
            self._read()
        return self.heard.popleft()

    def _read(self) -> None:
        data = self.wire.recv(65536)
        assert data, "the server has closed the connection"
        self.protocol.receive_data(data)
        if self.protocol.handshake_exc:
            raise self.protocol.handshake_exc
        frames = [e for e in self.protocol.events_received() if isinstance(e, Frame)]
        self.heard.extend(bytes(f.data) for f in frames if f.opcode is Opcode.BINARY)
        self._flush()

    def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            self.wire.sendall(data)


class Native:
    def __init__(self, url: str, key: str) -> None:
        self.socket = Socket(url, key)
        self.metadata = msgpack.unpackb(self.socket.recv())
        self.begin()

    def begin(self) -> None:
        self.told({"type": "begin", "consent": True}, "ready")

    def told(self, message: dict, kind: str) -> dict:
        """Send, and wait for the message of this kind; those before it are dropped."""
        self.socket.send(msgpack.packb(message))
        while (heard := msgpack.unpackb(self.socket.recv()))["type"] != kind:
            pass
        return heard

    def ask(self, number: int, deadline_ms: float) -> str:
        seen = {"dtype": "<f4", "shape": (17,), "data": OBSERVATIONS[number % 1000].tobytes()}
        message = {"type": "observe", "seq": number, "time": time.monotonic(), "observation": seen}
        self.socket.send(msgpack.packb({**message, "deadline_ms": deadline_ms}))
        while (told := msgpack.unpackb(self.socket.recv())).get("seq") != number:
            pass
        shape = told["actions"]["shape"]
        actions = np.frombuffer(told["actions"]["data"], told["actions"]["dtype"]).reshape(shape)
        assert actions.shape[-1] == 6
        return told.get("reason", "")


class Floor:
    """As many bytes as an observation has, there and back; the server works for `work_us` in between."""

    def __init__(self, url: str, key: str, work_us: int = 0) -> None:
        self.head = struct.pack("<I", work_us)
        host, _, port = url.rpartition("/")[2].partition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, number: int, deadline_ms: float) -> str:
        data = self.head + OBSERVATIONS[number % 1000].tobytes()
        self.socket.sendall(data)
        left = len(data)
        while left:
            left -= len(self.socket.recv(left))
        return ""


CLIENTS = {"openpi": OpenPi, "native": Native, "floor": Floor}


def paced(robot: OpenPi | Native | Floor, hz: float, seconds: float) -> dict:
    """Round trips in ms; a tick is missed where its action is there later than the next tick."""
    for number in range(1, WARM):
        robot.ask(number, 1000.0)
    ticks = int(hz * seconds)
    trips, missed, safe = np.empty(ticks), 0, 0
    start = time.monotonic() + 0.01
    for tick in range(ticks):
        due = start + tick / hz
        while (left := due - time.monotonic()) > 0:
            time.sleep(left)
        begun = time.perf_counter()
        safe += bool(robot.ask(WARM + tick, 1000.0 / hz))
        trips[tick] = (time.perf_counter() - begun) * 1e3
        missed += time.monotonic() > due + 1 / hz
    p50, p99, p999, most = (round(float(v), 3) for v in np.percentile(trips, (50, 99, 99.9, 100)))
    return {"p50": p50, "p99": p99, "p99.9": p999, "max": most, "ticks": ticks, "missed": missed, "safe": safe}


def stopped(url: str, key: str, hz: float, stops: int) -> dict:
    """From sending the stop to the first safe action at the robot: ms, and actions of the policy received since."""
    robot, hand = Native(url, key), Native(url, key)
    number, latencies, ticks = 0, [], []
    for _ in range(stops):
        for _ in range(20):
            number += 1
            robot.ask(number, 1000.0)
            time.sleep(1 / hz)
        pulled = time.perf_counter()
        hand.socket.send(msgpack.packb({"type": "stop", "reason": "bench"}))
        since = 0
        while True:
            number += 1
            if robot.ask(number, 1000.0):
                break
            since += 1
            time.sleep(1 / hz)
        latencies.append((time.perf_counter() - pulled) * 1e3)
        ticks.append(since)
        token = hand.told({"type": "begin", "consent": False}, "token")["token"]
        hand.told({"type": "reset", "token": token}, "released")
        robot.begin()
    return {"stops": stops, "ms_p50": round(float(np.median(latencies)), 3), "ms_max": round(max(latencies), 3),
            "policy_actions_after": max(ticks)}  # fmt: skip


def main() -> None:
    told = json.loads(sys.argv[1])
    if told.get("stops"):
        print(json.dumps(stopped(told["url"], told["key"], told["hz"], told["stops"])))
        return
    more = {"work_us": told["work_us"]} if "work_us" in told else {}
    robot = CLIENTS[told["client"]](told["url"], told["key"], **more)
    print(json.dumps(paced(robot, told["hz"], told["seconds"])))


if __name__ == "__main__":
    main()
