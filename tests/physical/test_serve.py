"""Policies over the WebSocket: what is moved, what is refused, and what a stop stops."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from served import ADMIN, ADMIN_SECRET, KEYS, MANIFEST, USER, gated, mlp, policies, service
from support import OTHER_SECRET, SECRET
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket

from atoll.core.errors import AtollError, Conflict, EngineFailed, Forbidden, InvalidRequest, NotFound, Unauthenticated
from atoll.core.manifest import Channel, Image
from atoll.physical.imitation.networks import NETWORKS, Sizes
from atoll.physical.imitation.policies import TorchPolicy
from atoll.physical.serve import server
from atoll.physical.serve.client import connect
from atoll.physical.serve.record import fingerprint
from atoll.physical.serve.served import measured_in
from atoll.physical.serve.wire import pack, unpack

HEADERS = {"authorization": f"Bearer {SECRET}"}


def seen(goal: float = 0.5, joints: float = 0.0) -> dict[str, Any]:
    return {"joints": [joints, joints], "goal": [goal, -goal]}


async def test_an_observation_is_answered_within_limits(tmp_path: Path):
    async with policies(tmp_path) as (_, url), connect(url, SECRET, consent=True) as robot:
        assert robot.metadata["manifest"]["task"] == "two-joints"
        first = await robot.act(seen(), at=10.0)
        assert first.actions == pytest.approx(np.array([[0.04, -0.04]]))
        assert first.limited == ("joints[0]: velocity", "joints[1]: velocity")
        second = await robot.act(seen(), at=10.02)
        assert second.actions == pytest.approx(np.array([[0.08, -0.08]]))
        assert (second.safe, second.time, second.dt) == ("", 10.02, 0.02)
        flat = await robot.act([0.08, -0.08, 0.1, -0.1], at=10.04)
        assert flat.actions == pytest.approx(np.array([[0.1, -0.1]]))
        assert flat.limited == ()


async def test_the_first_action_goes_on_from_where_the_manifest_says_that_the_robot_is(tmp_path: Path):
    joints = tuple(Channel(name, 1, "rad") for name in ("shoulder", "elbow"))
    policy = mlp(replace(MANIFEST, action=joints, measured=(1, 0)))
    async with policies(tmp_path, policy) as (_, url), connect(url, SECRET, consent=True) as robot:
        first = await robot.act({"joints": [0.3, 0.2], "goal": [0.9, 0.9]}, at=10.0)
        assert first.actions == pytest.approx(np.array([[0.24, 0.34]]))
    with pytest.raises(InvalidRequest, match="'measured' must be 2 places in the observation"):
        measured_in(replace(MANIFEST, measured=(0, 4)))


async def test_json_is_spoken_to_who_speaks_it(tmp_path: Path):
    async with (
        policies(tmp_path) as (_, url),
        websocket(f"{url}?format=json", additional_headers=HEADERS) as socket,
    ):
        assert json.loads(await socket.recv())["type"] == "metadata"
        await socket.send('{"type": "begin", "consent": true}')
        assert json.loads(await socket.recv())["type"] == "ready"
        await socket.send(json.dumps({"type": "observe", "seq": 7, "time": 1.0, "observation": seen(0.02)}))
        told = json.loads(await socket.recv())
        assert (told["type"], told["seq"]) == ("action", 7)
        assert told["actions"] == [[pytest.approx(0.02), pytest.approx(-0.02)]]
        await socket.send(pack({"type": "observe", "seq": 8, "time": 1.02, "observation": seen(0.02)}))
        assert unpack(await socket.recv())["seq"] == 8


async def test_nothing_moves_without_consent(tmp_path: Path):
    async with policies(tmp_path) as (_, url), connect(url, SECRET) as robot:
        with pytest.raises(InvalidRequest, match="agreed"):
            await robot.act(seen())
        await robot.begin()
        assert (await robot.act(seen())).safe == ""


async def test_nobody_is_let_in_without_a_key(tmp_path: Path):
    async with policies(tmp_path) as (_, url):
        with pytest.raises(Unauthenticated, match="unknown"):
            async with connect(url, "sk-guess"):
                pass
        with pytest.raises(NotFound, match="there are: arm"):
            async with connect(url.replace("arm", "leg"), SECRET):
                pass


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"type": "dance"}, "no message 'dance'"),
        ({"type": "observe", "seq": 1.5, "observation": seen()}, "'seq'"),
        ({"type": "observe", "seq": 1, "observation": [0.0, 1.0]}, "2 values, not 4"),
        ({"type": "observe", "seq": 1, "observation": {"joints": [0, 0]}}, "'goal' must have 2 values, not 0"),
        ({"type": "observe", "seq": 1, "observation": {**seen(), "more": [1]}}, "no 'more'"),
        ({"type": "observe", "seq": 1, "observation": seen(float("nan"))}, "'goal' is not finite"),
        ({"type": "observe", "seq": 1, "observation": seen(9.0)}, "outside -2 to 2 rad"),
        ({"type": "observe", "seq": 1, "observation": [[1], [1, 2]]}, "different lengths"),
        ({"type": "observe", "seq": 1, "observation": "up"}, "numbers"),
        ({"type": "observe", "seq": 1, "observation": {**seen(), "more": [1], b"more": [1]}}, "there is no 'b'more''"),
        (
            {"type": "observe", "seq": 1, "observation": {"dtype": "<f4", "shape": [0, *[2**31 - 1] * 3], "data": b""}},
            "0 bytes",
        ),
        ({"type": "observe", "seq": 1, "time": "now", "observation": seen()}, "'time'"),
        ({"type": "observe", "seq": 1, "deadline_ms": 0, "observation": seen()}, "'deadline_ms'"),
        ({"type": "observe", "seq": 1, "observation": {"dtype": "|O", "shape": [4], "data": b""}}, "dtype"),
        ({"type": "observe", "seq": 1, "observation": {"dtype": "<f4", "shape": [4], "data": b"123"}}, "3 bytes"),
        ({"type": "begin", "consent": "yes"}, "consent"),
        ({"type": "reset", "token": "guess"}, "not stopped"),
        ({"kind": "observe"}, "'type'"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, message: dict[str, Any], says: str):
    async with policies(tmp_path) as (_, url), websocket(url, additional_headers=HEADERS) as socket:
        await socket.recv()
        await socket.send(pack(message))
        told = unpack(await socket.recv())
        assert told["type"] == "error"
        assert says in told["message"]
        await socket.send(b"\xc1garbage")
        assert "neither MessagePack" in unpack(await socket.recv())["message"]
        await socket.send(pack({"type": "begin", "consent": True}))
        assert unpack(await socket.recv())["type"] == "ready"


async def test_a_stop_reaches_all_sessions_and_holds_until_its_token(tmp_path: Path):
    heard: list[dict[str, Any]] = []
    async with policies(tmp_path) as (made, url):
        async with (
            connect(url, SECRET, consent=True, listen=heard.append) as robot,
            connect(url, OTHER_SECRET, consent=True) as other,
        ):
            await robot.act(seen(), at=1.0)
            token = await other.stop("a hand in the way")
            assert token
            assert await other.stop("again") == ""
            held = await robot.act(seen(), at=1.02)
            assert held.safe == "stopped"
            assert held.actions == pytest.approx(np.array([[0.04, -0.04]]))
            assert [message["type"] for message in heard] == ["safe", "stopped"]
            assert heard[1]["reason"] == "a hand in the way"
            with pytest.raises(AtollError, match="not the token"):
                await robot.reset("guess")
            assert (await robot.act(seen(), at=1.04)).safe == "stopped"
            await robot.reset(token)
            with pytest.raises(InvalidRequest, match="agreed"):
                await robot.act(seen(), at=1.06)
            await robot.begin()
            assert (await robot.act(seen(), at=1.08)).safe == ""
        [row] = made.rows()
        assert (row["state"], row["stop"]) == ("ready", None)


async def in_one_piece(socket: ClientConnection, *messages: dict[str, Any]) -> None:
    for message in messages:
        socket.protocol.send_binary(pack(message))
    socket.transport.write(b"".join(socket.protocol.data_to_send()))


def observed(seq: int) -> dict[str, Any]:
    return {"type": "observe", "seq": seq, "time": 1 + seq * 0.02, "observation": seen()}


async def test_what_comes_in_one_piece_with_a_stop_moves_nothing(tmp_path: Path):
    async with policies(tmp_path) as (_, url), websocket(f"{url}?consent=true", additional_headers=HEADERS) as socket:
        await in_one_piece(socket, observed(1), {"type": "stop"}, observed(2), observed(3))
        told: list[dict[str, Any]] = []
        while not {("token", None), ("safe", 3)} <= {(message["type"], message.get("seq")) for message in told}:
            told.append(unpack(await asyncio.wait_for(socket.recv(), 5)))
    answers = {message["seq"]: message for message in told if message["type"] in ("action", "safe") and message["seq"]}
    assert [answers[seq]["type"] for seq in (1, 2, 3)] == ["action", "safe", "safe"]
    assert {answers[seq]["reason"] for seq in (2, 3)} == {"stopped"}


async def test_a_flood_of_stops_is_written_down_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[Any] = []
    admin = {"authorization": f"Bearer {ADMIN_SECRET}"}
    async with policies(tmp_path) as (made, url), websocket(url, additional_headers=admin) as socket:
        write = made.records.write
        monkeypatch.setattr(made.records, "write", lambda record: (written.append(record), write(record)))
        await in_one_piece(socket, *[{"type": "stop"}] * 100)
        tokens: list[str] = []
        with suppress(TimeoutError):
            while message := unpack(await asyncio.wait_for(socket.recv(), 1)):
                tokens += [message["token"]] if message["type"] == "token" else []
        assert made.rows()[0]["state"] == "stopped"
        assert 1 <= len(written) < 10
        await made.reset("arm", tokens[-1], USER)


async def test_a_stop_outlives_a_restart_and_an_admin_gets_a_new_token(tmp_path: Path):
    async with policies(tmp_path) as (made, _):
        assert await made.stop("arm", USER, "smoke")
    async with service(tmp_path / "data") as made:
        [row] = made.rows()
        assert (row["state"], row["stop"]["reason"]) == ("stopped", "smoke")
        assert await made.stop("arm", USER, "") == ""
        token = await made.stop("arm", ADMIN, "")
        with pytest.raises(Forbidden):
            await made.reset("arm", "guess", ADMIN)
        await made.reset("arm", token, USER)
        assert made.rows()[0]["state"] == "ready"


async def test_the_watchdog_speaks_when_nobody_does(tmp_path: Path):
    heard: list[dict[str, Any]] = []
    async with policies(tmp_path) as (made, url):
        made.served("arm").rules = replace(made.served("arm").rules, watchdog=0.05)
        async with connect(url, SECRET, consent=True, listen=heard.append) as robot:
            await robot.act(seen(), at=1.0)
            async with asyncio.timeout(5):
                while not heard:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert (heard[0]["type"], heard[0]["reason"], heard[0]["seq"]) == ("safe", "watchdog", None)


class Slow:
    """Takes its time, and says what it was asked."""

    manifest = MANIFEST

    def __init__(self) -> None:
        self.asked: list[float] = []

    def act(self, observation: np.ndarray, images: Any = None) -> np.ndarray:
        self.asked.append(float(observation[0, 2]))
        time.sleep(0.03)
        return observation[:, None, 2:]


async def test_a_slow_policy_answers_the_newest_and_in_time_or_safely(tmp_path: Path):
    async with policies(tmp_path) as (made, url):
        served = made.served("arm")
        slow = served.policy = Slow()  # type: ignore[assignment]
        served.quick, served._pool = False, ThreadPoolExecutor(1)
        async with websocket(url, additional_headers=HEADERS) as socket:
            await socket.recv()
            await socket.send(pack({"type": "begin", "consent": True}))
            await socket.recv()
            for seq, goal in enumerate((0.1, 0.2, 0.3)):
                message = {"type": "observe", "seq": seq, "time": seq * 0.02, "observation": seen(goal)}
                await socket.send(pack(message))
            told = [unpack(await socket.recv()) for _ in range(2)]
            assert [(m["type"], m["seq"], m["dropped"]) for m in told] == [("action", 0, [1]), ("action", 2, [])]
            assert slow.asked == pytest.approx([0.1, 0.3])
            message = {"type": "observe", "seq": 3, "time": 0.1, "observation": seen(), "deadline_ms": 5}
            await socket.send(pack(message))
            told = [unpack(await socket.recv())]
            assert (told[0]["type"], told[0]["seq"], told[0]["reason"]) == ("safe", 3, "deadline")


async def test_who_leaves_while_the_policy_thinks_is_forgotten(tmp_path: Path):
    async with policies(tmp_path) as (made, url):
        served = made.served("arm")
        slow = served.policy = Slow()  # type: ignore[assignment]
        served.quick, served._pool = False, ThreadPoolExecutor(1)
        async with websocket(f"{url}?consent=true", additional_headers=HEADERS) as socket:
            await socket.recv()
            await socket.send(pack({"type": "observe", "seq": 1, "time": 1.0, "observation": seen()}))
            async with asyncio.timeout(5):
                while not slow.asked:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            [line] = served.lines
        await asyncio.to_thread(served._pool.shutdown)
        await asyncio.sleep(0.05)
        assert not served.lines
        assert line._timer is None or line._timer.cancelled()
    assert '"event":"session_ends"' in (tmp_path / "data/arm/audit.jsonl").read_text().splitlines()[-1]


async def test_a_key_that_is_revoked_moves_nothing_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with policies(tmp_path) as (_, url), connect(url, SECRET, consent=True) as robot:
        await robot.act(seen())
        monkeypatch.setattr(server, "RECHECK_S", 0.0)
        monkeypatch.delitem(KEYS, SECRET)
        with pytest.raises(EngineFailed, match="revoked"):
            for _ in range(3):
                await robot.act(seen())


async def test_a_network_that_sees_is_served(tmp_path: Path):
    """Chunks of a torch policy, from a picture that came over the wire."""
    manifest = replace(MANIFEST, kind="act", chunk=4, images=(Image("front", 64, 64),), network={"width": 16})
    sizes = Sizes(manifest.observation_size, manifest.action_size, 4, 16, ("front",))
    torch.manual_seed(0)
    weights = {f"net.{name}": value.numpy() for name, value in NETWORKS["act"](sizes).state_dict().items()}
    weights |= {"observation.mean": np.zeros(4, np.float32), "observation.scale": np.ones(4, np.float32)}
    weights |= {"action.shift": np.zeros(2, np.float32), "action.scale": np.ones(2, np.float32)}
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    policy = TorchPolicy(manifest, weights)
    async with policies(tmp_path, policy) as (_, url), connect(url, SECRET, consent=True) as robot:
        with pytest.raises(AtollError, match="'front' must be"):
            await robot.act(seen(), at=1.0)
        told = await robot.act(seen(), at=1.1, images={"front": picture})
    assert (told.actions.shape, told.safe) == ((4, 2), "")
    given = policy.act(np.array([[0, 0, 0.5, -0.5]], np.float32), {"front": picture[None]})[0]
    assert np.abs(np.diff(told.actions, axis=0, prepend=0)).max() <= 0.04 + 1e-6
    assert np.sign(told.actions[0]).tolist() == np.sign(given[0]).tolist()


async def test_a_policy_that_raises_is_safe_and_in_the_audit(tmp_path: Path):
    class Broken:
        manifest = MANIFEST

        def act(self, *_: Any) -> np.ndarray:
            raise ValueError("no such joint")

    async with policies(tmp_path) as (made, url), connect(url, SECRET, consent=True) as robot:
        await robot.act(seen(), at=1.0)
        made.served("arm").policy = Broken()  # type: ignore[assignment]
        assert (await robot.act(seen(), at=1.02)).safe == "policy_failed"
    assert "no such joint" in (tmp_path / "data/arm/audit.jsonl").read_text()


async def test_only_what_passed_its_gate_is_served(tmp_path: Path):
    async with service(tmp_path / "data") as made:
        with pytest.raises(InvalidRequest, match="its gate said 'fail'"):
            await made.promote("arm", *gated(tmp_path, decision="fail"), ADMIN)
        policy, report = gated(tmp_path)
        (tmp_path / "other").mkdir()
        other, _ = gated(tmp_path / "other", mlp(gain=0.5))
        with pytest.raises(InvalidRequest, match="not about this policy"):
            await made.promote("arm", other, report, ADMIN)
        with pytest.raises(InvalidRequest, match="lower-case"):
            await made.promote("../arm", policy, report, ADMIN)
        for nowhere in ("policy", "/", "/" + "a" * 300, "/\0"):
            with pytest.raises(NotFound, match="neither the digest"):
                await made.promote("arm", nowhere, report, ADMIN)
        with pytest.raises(NotFound, match="no artifact"):
            await made.promote("arm", "0" * 64, report, ADMIN)
        made._catalogue.tiers["max"] = "some-model"  # type: ignore[index]
        with pytest.raises(Conflict, match="name of a model"):
            await made.promote("max", policy, report, ADMIN)
        assert not made.rows()
        await made.promote("arm", policy, report, ADMIN)
        with pytest.raises(Conflict, match="promoted already"):
            await made.promote("arm", policy, report, ADMIN)
        with pytest.raises(Conflict, match="no version"):
            await made.rollback("arm", ADMIN)


async def test_a_report_that_no_gate_wrote_is_refused(tmp_path: Path):
    policy, report = gated(tmp_path)
    path = Path(report) / "report.json"
    told = json.loads(path.read_text())
    lost = {**told["evidence"], "nominal": {"successes": 50, "episodes": 100}}
    forged = {
        "lacks 'incumbent'": {"decision": "pass", "policy": told["policy"]},
        "does not tell what": {**told, "evidence": {"nominal": {"successes": 9, "episodes": 1}}},
        "'rule.success' must be": {**told, "rule": {"success": -1}},
        "its own evidence says otherwise": {**told, "evidence": lost},
        "must show": {**told, "evidence": lost, "rule": {"success": 0, "gap": 1}},
        "did not try": {**told, "evidence": {**told["evidence"], "stress": {}}},
    }
    async with service(tmp_path / "data") as made:
        for why, each in forged.items():
            path.write_text(json.dumps(each))
            with pytest.raises(InvalidRequest, match=why):
                await made.promote("arm", policy, report, ADMIN)


async def test_a_rollback_serves_the_version_before_and_ends_sessions(tmp_path: Path):
    async with policies(tmp_path) as (made, url):
        first = made.rows()[0]["promoted"]["policy"]
        (tmp_path / "next").mkdir()
        other = gated(tmp_path / "next", mlp(gain=0.5))
        with pytest.raises(Conflict, match=f"does not compare with .*--from incumbent={first[:12]}"):
            await made.promote("arm", *other, ADMIN)
        await made.promote("arm", *other, ADMIN, uncompared=True)
        await made.rollback("arm", ADMIN)
        await made.promote("arm", *gated(tmp_path / "next", mlp(gain=0.5), incumbent=first), ADMIN)
        second = made.rows()[0]["promoted"]["policy"]
        assert first != second
        async with connect(url, SECRET, consent=True) as robot:
            assert robot.metadata["version"] == second
            assert (await robot.act(seen(0.04))).actions[0, 0] == pytest.approx(0.02)
            await made.rollback("arm", ADMIN)
            with pytest.raises(EngineFailed, match="another version is promoted"):
                await robot.act(seen())
        async with connect(url, SECRET, consent=True) as robot:
            assert robot.metadata["version"] == first
            assert (await robot.act(seen(0.04))).actions[0, 0] == pytest.approx(0.04)


async def test_a_policy_judged_anew_stays_in_service_and_in_the_past(tmp_path: Path):
    folders = {}
    for run, gain, before in (("a", 1.0, None), ("y", 0.5, "a"), ("b", 1.0, "y"), ("c", 1.0, None)):
        (tmp_path / run).mkdir()
        incumbent = tmp_path / before / "policy" if before else None
        folders[run] = gated(tmp_path / run, mlp(gain=gain), seed=ord(run), incumbent=incumbent)
    async with service(tmp_path / "data") as made:
        for run in ("a", "y", "b"):
            row = await made.promote("arm", *folders[run], ADMIN)
        before = made.served("arm")
        row = await made.promote("arm", *folders["c"], ADMIN)
        assert row["promoted"]["report"] == fingerprint(Path(folders["c"][1]))
        assert len(row["past"]) == 2
        assert made.served("arm") is before
    async with service(tmp_path / "data") as made:
        assert made.rows()[0]["state"] == "ready"
        await made.rollback("arm", ADMIN)
        row = await made.rollback("arm", ADMIN)
        assert row["promoted"]["report"] == fingerprint(Path(folders["a"][1]))


async def test_an_admission_that_is_killed_harms_nothing_in_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    async with policies(tmp_path) as (made, _):
        again = gated(tmp_path, seed=2)
        for call in ("rename", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(Path, call, killed)
                with pytest.raises(KeyboardInterrupt):
                    made.records.admit("arm", *map(Path, again))
                    made.records.write(made._known["arm"])
    litter = tmp_path / f"data/arm/versions/{'0' * 32}.part"
    litter.mkdir()
    async with service(tmp_path / "data") as made:
        assert made.rows()[0]["state"] == "ready"
        assert not litter.exists()


async def test_a_version_that_was_changed_on_disk_is_not_served(tmp_path: Path):
    async with policies(tmp_path) as (made, _):
        promoted = made.rows()[0]["promoted"]
        folder = made.records.folder("arm", promoted["policy"], promoted["report"]) / "policy"
    (folder / "policy.json").write_text((folder / "policy.json").read_text().replace("50.0", "500.0"))
    async with service(tmp_path / "data") as made:
        [row] = made.rows()
        assert row["state"] == "failed"
        assert "changed on disk" in row["detail"]
        with pytest.raises(InvalidRequest, match="changed on disk"):
            made.served("arm")


async def test_without_the_extra_it_is_listed_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with policies(tmp_path):
        pass
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "atoll.physical.policy")
    async with service(tmp_path / "data") as made:
        [row] = made.rows()
        assert (row["state"], row["manifest"]) == ("missing", None)
        assert "make physical" in row["detail"]


async def test_the_audit_tells_who_moved_what(tmp_path: Path):
    async with policies(tmp_path) as (made, url):
        async with connect(url, SECRET, consent=True) as robot:
            for i in range(5):
                await robot.act(seen(), at=1.0 + i * 0.02)
        await made.stop("arm", ADMIN, "drill")
    lines = [json.loads(line) for line in (tmp_path / "data/arm/audit.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["promoted", "session_begins", "consent", "met", "met", "session_ends", "stopped"]
    assert lines[3]["what"] == "limit joints[0]: velocity"
    assert lines[5]["answered"] == 5
    assert lines[5]["met"] == {"limit joints[0]: velocity": 5, "limit joints[1]: velocity": 5}
    assert (lines[1]["by"], lines[6]["by"]) == (USER.id, ADMIN.id)
    assert ADMIN_SECRET not in str(lines)


async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path):
    async with policies(tmp_path) as (made, url), websocket(url, additional_headers=HEADERS) as socket:
        await socket.recv()
        [line] = made.served("arm").lines
        for _ in range(100):
            line._send({"type": "safe", "seq": None, "actions": np.zeros(50_000)})
        async with asyncio.timeout(5):
            while made.served("arm").lines:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert "session_ends" in (tmp_path / "data/arm/audit.jsonl").read_text()


async def test_text_that_is_none_ends_the_connection(tmp_path: Path):
    async with policies(tmp_path) as (_, url), websocket(url, additional_headers=HEADERS) as socket:
        await socket.recv()
        await socket.send(b"\xff\xfe", text=True)
        async with asyncio.timeout(5):
            await socket.wait_closed()
        assert socket.close_code == 1007
