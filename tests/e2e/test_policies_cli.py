"""A robot policy in the real cloud: promoted by command, in the catalogue, moved over the WebSocket, rolled back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from clients.environments import HERE, python_environment
from conftest import Live, start
from reaching import reaching
from served import MANIFEST, free_port, gated, mlp

from atoll.core.errors import AtollError
from atoll.core.manifest import Channel, Image, Manifest
from atoll.physical.policy import MlpPolicy
from atoll.physical.serve.client import connect

pytestmark = [pytest.mark.xdist_group("robots"), pytest.mark.timeout(600)]

SEEN = {"joints": [0.0, 0.0], "goal": [0.5, -0.5]}


def atoll(live: Live, *arguments: str) -> Any:
    told = {"ATOLL_URL": live.url, "ATOLL_API_KEY": live.key}
    done = subprocess.run(
        [sys.executable, "-m", "atoll.cli", "policies", *arguments, "--json"],
        env={**os.environ, **told}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A cloud of its own: what is promoted here is not for other tests to meet."""
    cloud = start(tmp_path_factory.mktemp("robots"), "--models", "smollm2-135m")
    yield cloud
    assert cloud.stop() == 0


def test_a_policy_is_a_model_that_moves_a_robot(live: Live, tmp_path: Path):
    first = atoll(live, "promote", "arm", *gated(tmp_path))["promoted"]["policy"]
    (tmp_path / "next").mkdir()
    following = gated(tmp_path / "next", mlp(gain=0.5), incumbent=first)
    second = atoll(live, "promote", "arm", *following)["promoted"]["policy"]
    assert first != second
    assert atoll(live, "rollback", "arm")["promoted"]["policy"] == first
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key) as client:
        model = client.models.retrieve("arm").model_dump()
        assert (model["task"], model["state"], model["manifest"]["rate_hz"]) == ("policy", "ready", 50.0)
        with pytest.raises(openai.BadRequestError, match="'arm' is for policy, not for chat"):
            client.chat.completions.create(model="arm", messages=[{"role": "user", "content": "move"}])
    asyncio.run(drive(live))


async def drive(live: Live) -> None:
    """A stop by command reaches the session, and its token releases it."""
    url = f"ws{live.url[4:]}/atoll/v1/policies/arm/act"
    async with connect(url, live.key, consent=True) as robot:
        assert (await robot.act(SEEN)).actions == pytest.approx(np.array([[0.04, -0.04]]))
        stopped = await asyncio.to_thread(atoll, live, "stop", "arm", "--reason", "drill")
        assert (await robot.act(SEEN)).safe == "stopped"
        with pytest.raises(AtollError, match="not the token"):
            await robot.reset("guess")
        await asyncio.to_thread(atoll, live, "reset", "arm", stopped["token"])
        await robot.begin()
        assert (await robot.act(SEEN)).safe == ""


def test_who_may_do_what(live: Live, tmp_path: Path):
    atoll(live, "promote", "leg", *gated(tmp_path))
    key = {"authorization": f"Bearer {live.key}"}
    made = httpx.post(f"{live.url}/atoll/v1/keys", json={"name": "robot"}, headers=key).json()["secret"]
    robot = {"authorization": f"Bearer {made}"}
    base = f"{live.url}/atoll/v1/policies"
    assert httpx.get(base).status_code == 401
    assert httpx.get(f"{base}/leg", headers=robot).json()["manifest"]["task"] == "two-joints"
    assert httpx.post(f"{base}/leg/rollback", headers=robot).status_code == 403
    assert httpx.post(f"{base}/leg/promote", json={"policy": "/a", "report": "/b"}, headers=robot).status_code == 403
    assert httpx.post(f"{base}/tail/stop", headers=robot).status_code == 404
    token = httpx.post(f"{base}/leg/stop", headers=robot).json()["token"]
    assert httpx.post(f"{base}/leg/reset", json={"token": "guess"}, headers=key).status_code == 403
    assert httpx.post(f"{base}/leg/reset", json={"token": token}, headers=robot).json()["state"] == "ready"
    assert httpx.post(f"{base}/leg/reset", json={"token": token}, headers=robot).status_code == 409


def test_a_chat_moves_the_simulated_arm(live: Live, tmp_path: Path):
    """OpenAI's SDK and function calling, then the official MCP client: refused until the key's holder agrees."""
    atoll(live, "promote", "arm", *gated(tmp_path, reaching()), "--uncompared")
    key = {"authorization": f"Bearer {live.key}"}
    asked: list[Any] = [{"role": "user", "content": "Move the robot arm to x 0.45, y -0.1 and z 0.3."}]
    with (
        httpx.Client(base_url=f"{live.url}/atoll/v1/policies/arm", headers=key, timeout=60) as api,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key) as client,
    ):
        tool = api.get("/tool").json()
        said = client.chat.completions.create(model="max", messages=asked, tools=[tool], temperature=0)
        [call] = said.choices[0].message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert (call.function.name, arguments) == ("move_arm", {"x": 0.45, "y": -0.1, "z": 0.3})
        refused = api.post("/run", json={"arguments": arguments})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "consent_required")
        assert mcp(live, {"x": 0.5, "y": 0.1, "z": 0.2})["error"]
        assert api.post("/consent", json={"consent": True, "seconds": 300}).status_code == 200
        done = api.post("/run", json={"arguments": arguments}).json()
    assert done["success"]
    assert done["final"]["end_effector"] == pytest.approx([0.45, -0.1, 0.3], abs=0.02)
    told = mcp(live, {"x": 0.5, "y": 0.1, "z": 0.2})
    assert (told["tool"], told["error"], told["told"]["success"]) == ("move_arm", False, True)
    atoll(live, "stop", "arm")
    assert mcp(live, {"x": 0.5, "y": 0.1, "z": 0.2})["error"]


def mcp(live: Live, arguments: dict[str, float]) -> Any:
    argv = [str(python_environment("robots") / "python"), str(HERE / "robots_mcp.py"), json.dumps(arguments)]
    told = {**os.environ, "ATOLL_URL": live.url, "ATOLL_KEY": live.key}
    done = subprocess.run(argv, env=told, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def humanoid() -> MlpPolicy:
    """A policy with the channels of GR00T's G1: hold the joints where they are, 0.1 further, four times."""
    sizes = {"left_arm": 7, "right_arm": 7, "left_hand": 7, "right_hand": 7}
    given = tuple(Channel(name, size) for name, size in sizes.items())
    seen = (*given, Channel("left_leg", 6), Channel("right_leg", 6), Channel("waist", 3))
    images = (Image("ego_view", 8, 8),)
    manifest = Manifest("wave", "mlp", 10.0, seen, given, 4, images, network={"squash": "none"})
    weights = {name: np.ones(43, np.float32) for name in ("observation.scale",)}
    weights |= {"observation.mean": np.zeros(43, np.float32), "action.scale": np.ones(28, np.float32)}
    weights |= {"action.shift": np.full(28, 0.1, np.float32), "0.bias": np.zeros(112, np.float32)}
    weights["0.weight"] = np.tile(np.eye(43, 28, dtype=np.float32), (1, 4))
    return MlpPolicy(manifest, weights)


def test_published_clients_of_openpi_and_groot_get_actions(live: Live, tmp_path: Path):
    """`openpi-client` speaks to the cloud itself, a client of GR00T's service to a bridge beside it."""
    for name, policy in (("two", mlp(replace(MANIFEST, chunk=3))), ("g1", humanoid())):
        (tmp_path / name).mkdir()
        atoll(live, "promote", name, *gated(tmp_path / name, policy))
    told = {**os.environ, "ATOLL_URL": live.url, "ATOLL_API_KEY": live.key, "ATOLL_KEY": live.key}
    port = free_port()
    options = ["g1", "groot", "--port", str(port), "--consent", "--simulated", "--lend-key"]
    bridge = subprocess.Popen([sys.executable, "-m", "atoll.cli", "policies", "bridge", *options], env=told)
    try:
        argv = [str(python_environment("robots") / "python"), str(HERE / "robots_tour.py"), str(port)]
        done = subprocess.run(argv, env=told, capture_output=True, text=True, timeout=120)
    finally:
        bridge.terminate()
        bridge.wait(10)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["openpi"]["task"] == "two-joints"
    assert np.array(seen["openpi"]["actions"])[:, 0] == pytest.approx([0.04, 0.08, 0.12])
    assert "takes no 'observation/knee'" in seen["openpi"]["refused"]
    [first, *_] = seen["groot"]["actions"]
    assert len(seen["groot"]["actions"]) == 4
    assert first[:7] == pytest.approx([0.2] * 7)
