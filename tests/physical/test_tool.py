"""A served policy as a tool: simulated episodes in processes of their own, with consent, limits and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from reaching import reaching
from served import ADMIN, USER, gated, mlp, policies
from support import OTHER

from atoll.core.errors import (
    DeadlineExceeded,
    EngineFailed,
    Forbidden,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unauthenticated,
)
from atoll.core.manifest import Image
from atoll.physical.policy import MlpPolicy
from atoll.physical.serve import tool
from atoll.physical.serve.client import connect
from atoll.physical.serve.episode import goal_of
from atoll.physical.serve.service import Service
from atoll.physical.serve.tool import Tools
from atoll.physical.sim import load_task

POINT = {"x": 0.5, "y": 0.1, "z": 0.2}


@asynccontextmanager
async def arm(folder: Path, policy: MlpPolicy | None = None) -> AsyncIterator[tuple[Service, Tools]]:
    async with policies(folder, policy or reaching()) as (made, url):
        yield made, Tools(made, lambda: url.partition("/atoll")[0])


async def test_the_schema_asks_for_what_the_task_draws(tmp_path: Path):
    async with arm(tmp_path) as (_, tools):
        function = (await tools.tool("arm"))["function"]
    fields = function["parameters"]["properties"]
    assert function["name"] == "move_arm"
    assert {name: (fields[name]["minimum"], fields[name]["maximum"]) for name in "xyz"} == {
        "x": (0.38, 0.58), "y": (-0.2, 0.2), "z": (0.05, 0.4),
    }  # fmt: skip
    assert function["parameters"]["required"] == ["x", "y", "z"]
    assert "seed" in fields


def test_goals_of_tasks():
    walks, puts = goal_of(load_task("go1-velocity")), goal_of(load_task("pick-place"))
    assert walks is not None and puts is not None
    assert walks.names == ("forward", "sideways", "turn")
    assert (puts.names, puts.free.tolist()) == (("x", "y", "z"), [True, True, False])
    assert goal_of(load_task("hopper")) is None


async def test_an_episode_does_what_is_asked_within_limits(tmp_path: Path):
    async with arm(tmp_path, reaching(speed=0.1)) as (made, tools):
        done = await tools.run("arm", POINT, USER, True)
        audit = made.served("arm").audit.path.read_text()
    assert done["success"]
    assert done["simulated"]
    assert done["final"]["goal"] == pytest.approx(list(POINT.values()))
    assert done["final"]["end_effector"] == pytest.approx(list(POINT.values()), abs=0.02)
    met = [limit for limit in done["limits"] if limit.endswith(": velocity")]
    assert met
    assert '"event":"tool"' in audit
    assert all(f'"what":"limit {limit}"' in audit for limit in met)


async def test_a_policy_that_sees_is_shown_its_cameras(tmp_path: Path):
    """The service refuses observations without the pictures that the manifest names."""
    async with arm(tmp_path, reaching(images=(Image("front", 32, 48),))) as (_, tools):
        assert (await tools.run("arm", POINT, USER, True))["success"]


async def test_nothing_moves_without_consent(tmp_path: Path):
    async with arm(tmp_path) as (made, tools):
        with pytest.raises(Forbidden, match="POST /atoll/v1/policies/arm/consent"):
            await tools.run("arm", POINT, USER, False)
        tools.agree("arm", USER, 60)
        with pytest.raises(Forbidden):
            await tools.run("arm", POINT, OTHER, False)
        assert (await tools.run("arm", POINT, USER, False))["success"]
        token = await made.stop("arm", ADMIN, "drill")
        await made.reset("arm", token, ADMIN)
        with pytest.raises(Forbidden):
            await tools.run("arm", POINT, USER, False)
        tools.agree("arm", USER, 0)
        with pytest.raises(Forbidden):
            await tools.run("arm", POINT, USER, False)


async def test_arguments_are_checked(tmp_path: Path):
    refused: list[tuple[dict[str, Any], str]] = [
        ({**POINT, "x": 0.9}, "x: 0.9 is greater than the maximum of 0.58"),
        ({"x": 0.5}, "'y' is a required property"),
        ({**POINT, "speed": 9}, "speed"),
        ({**POINT, "x": "far"}, "x: 'far' is not of type 'number'"),
        ({**POINT, "seed": -1}, "seed"),
    ]
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    refused.append(({**POINT, "x": deep}, "nested too deeply"))
    async with arm(tmp_path) as (_, tools):
        for arguments, says in refused:
            with pytest.raises(InvalidRequest, match=says):
                await tools.run("arm", arguments, USER, True)


async def test_a_stop_ends_the_episode(tmp_path: Path):
    async with arm(tmp_path, reaching(gain=0.001)) as (made, tools):
        running = asyncio.create_task(tools.run("arm", POINT, USER, True))
        async with asyncio.timeout(30):
            while not made.served("arm").answered:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await made.stop("arm", ADMIN, "drill")
        done = await running
        assert (done["stopped"], done["success"]) == (True, False)
        assert done["steps"] < 60
        assert done["safe"] == {"stopped": 1}
        again = await tools.run("arm", POINT, USER, True)
        assert (again["stopped"], again["steps"]) == (True, 0)


async def test_a_policy_of_another_task_is_told_apart(tmp_path: Path):
    async with arm(tmp_path) as (made, tools):
        (tmp_path / "two").mkdir()
        await made.promote("two", *gated(tmp_path / "two", mlp()), ADMIN)
        with pytest.raises(NotFound, match="there is no task 'two-joints'"):
            await tools.tool("two")


async def test_an_episode_that_hangs_or_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async with arm(tmp_path) as (_, tools):
        monkeypatch.setattr(tool, "LIMIT_S", 0.01)
        with pytest.raises(DeadlineExceeded):
            await tools.tool("arm")
        monkeypatch.undo()
        monkeypatch.setattr(tool, "EPISODE", "no.such.module")
        with pytest.raises(EngineFailed, match=r"No module named|no\.such"):
            await tools.tool("arm")
        monkeypatch.setattr(tool, "AT_ONCE", 0)
        with pytest.raises(Overloaded):
            await tools.tool("arm")


async def test_a_ticket_opens_one_session(tmp_path: Path):
    async with policies(tmp_path) as (made, url):
        ticket = made.ticket(USER)
        async with connect(url, ticket):
            assert [line.by for line in made.served("arm").lines] == [USER]
        with pytest.raises(Unauthenticated, match="unknown"):
            async with connect(url, ticket):
                pass
