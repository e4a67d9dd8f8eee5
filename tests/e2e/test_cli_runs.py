"""Runs from the command line: without a cloud, and in one. The work is real: a pendulum is learned to balance."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Live, start
from processes import alive, child_of

from atoll.cli import main

pytestmark = pytest.mark.xdist_group("cli")

ATOLL = [sys.executable, "-m", "atoll.cli"]
LEARN = ("rl", "--task", "inverted-pendulum", "--set", "snapshots=0", "--seed", "3")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    running = start(tmp_path_factory.mktemp("runs"), "--models", "silero-vad")
    yield running
    assert running.stop() == 0


def atoll(data: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ATOLL_DATA": str(data)}
    done = subprocess.run([*ATOLL, *arguments], capture_output=True, text=True, env=env, timeout=150)
    assert done.returncode == code and "Traceback" not in done.stderr, (done.stdout, done.stderr)
    return done


def told(data: Path, *arguments: str, code: int = 0) -> Any:
    return json.loads(atoll(data, *arguments, "--json", code=code).stdout)


def test_the_same_run_with_a_cloud_and_without(cloud: Live, tmp_path: Path) -> None:
    here = told(tmp_path, *LEARN, "--steps", "9000")
    assert here["state"] == "done" and here["steps"][0]["config"]["steps"] == 9000
    queued = told(cloud.data, *LEARN, "--steps", "9000", "--detach")
    assert queued["state"] in {"queued", "running"}
    there = told(cloud.data, "runs", "follow", queued["id"])
    assert there["steps"][0]["digest"] == here["steps"][0]["digest"]
    shown = atoll(cloud.data, "runs", "show", there["id"]).stdout
    assert f"{there['id']} (rl, seed 3) is done" in shown and here["steps"][0]["digest"][:12] in shown

    digest = here["steps"][0]["digest"]
    rows = told(tmp_path, "artifacts", "list")["data"]
    assert [(a["digest"], a["kind"], a["stage"]) for a in rows] == [(digest, "policy", "rl")]
    artifact = told(tmp_path, "artifacts", "show", digest[:8])
    assert artifact["config"]["seed"] == 3 and "policy.json" in artifact["files"]
    assert digest[:12] in atoll(cloud.data, "artifacts", "show", digest[:8]).stdout


def test_a_run_that_is_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    env = {**os.environ, "ATOLL_DATA": str(tmp_path)}
    command = [*ATOLL, *LEARN, "--steps", "400000"]
    running = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/run_*/rl/.work/checkpoint*")):
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    (id,) = re.findall(r"(run_\S+) is cancelled. Go on with it: atoll runs resume", said)
    assert running.returncode == 130
    row = told(tmp_path, "runs", "show", id)
    assert row["state"] == "cancelled" and 0 < row["steps"][0]["done"] < 400_000
    rows = atoll(tmp_path, "runs", "list").stdout
    assert id in rows and "cancelled" in rows
    assert "has ended" in atoll(tmp_path, "runs", "cancel", id, code=1).stderr


def test_a_cloud_goes_on_with_what_is_cancelled_and_resumed(cloud: Live) -> None:
    id = told(cloud.data, *LEARN, "--steps", "40000", "--detach")["id"]
    deadline = time.monotonic() + 60
    while not told(cloud.data, "runs", "show", id)["steps"][0]["done"]:
        assert time.monotonic() < deadline
    assert told(cloud.data, "runs", "cancel", id)["state"] == "cancelled"
    assert told(cloud.data, "runs", "resume", id, "--detach")["state"] in {"queued", "running"}
    assert told(cloud.data, "runs", "follow", id)["state"] == "done"


def test_a_killed_cloud_goes_on_with_its_runs_when_it_is_back(tmp_path: Path) -> None:
    first = start(tmp_path, "--models", "silero-vad")
    id = told(tmp_path, *LEARN, "--steps", "60000", "--detach")["id"]
    deadline = time.monotonic() + 60
    while not told(tmp_path, "runs", "show", id)["steps"][0]["done"]:
        assert time.monotonic() < deadline
    worker = child_of(first.process.pid, "atoll.jobs")
    first.process.kill()
    first.process.wait(10)
    first.close()
    while alive([worker]):
        assert time.monotonic() < deadline, "the worker goes with its cloud"
        time.sleep(0.05)
    second = start(tmp_path, "--models", "silero-vad")
    assert told(tmp_path, "runs", "follow", id)["state"] == "done"
    second.stop()


def test_stages_tell_their_settings(tmp_path: Path) -> None:
    shown = inside(tmp_path, "stages")
    assert re.search(r"^rl +\S+ +policy ", shown, re.MULTILINE)
    settings = inside(tmp_path, "stages", "rl")
    assert re.search(r'^task +string +"half-cheetah"$', settings, re.MULTILINE)
    assert json.loads(inside(tmp_path, "stages", "rl", "--json"))["config"]["properties"]["seed"]["default"] == 0


def test_pictures_are_taken_by_a_command(tmp_path: Path) -> None:
    taught = inside(tmp_path, "pictures", "--help")
    assert "--count" in taught and "atoll pictures --task" in taught and "atoll stages pictures" in taught
    small = ("--count", "2", "--set", "width=64", "--set", "height=64")
    assert re.search(r"^pictures: pictures by (OpenGL, |ray casting)", atoll(tmp_path, "pictures", *small).stderr, re.M)
    row = told(tmp_path, "pictures", *small)
    (step,) = row["steps"]
    assert step["renderer"]
    assert row["state"] == "done" and step["kind"] == "dataset"
    made = told(tmp_path, "artifacts", "show", step["digest"])
    assert {"card.json", "coco/annotations.json"} <= made["files"].keys() and made["config"]["count"] == 2


def test_mistakes_are_named(tmp_path: Path, cloud: Live) -> None:
    for data in (tmp_path, cloud.data):
        assert "no setting 'speed'" in inside(data, "rl", "--set", "speed=3", code=1)
        assert "there is no recipe 'fly'" in inside(data, "loop", "fly", code=1)
        assert "no run 'run_x'" in inside(data, "runs", "show", "run_x", code=1)
        assert "no artifacts are meant by 'abc'" in inside(data, "artifacts", "show", "abc", code=1)
        assert "there is no stage 'fly'" in inside(data, "stages", "fly", code=1)
        assert "(steps[0].config.steps)" in inside(data, "rl", "--set", "steps=-1", code=1)
    assert "must have a name" in inside(tmp_path, "rl", "--set", "speed", code=2)
    assert "no cloud runs here" in inside(tmp_path, "rl", "--detach", code=1)


def inside(data: Path, *arguments: str, code: int = 0) -> str:
    """A command in this process, which is quicker; all that it said."""
    done = CliRunner().invoke(main, arguments, env={"ATOLL_DATA": str(data)})
    assert done.exit_code == code, done.output
    return done.output
