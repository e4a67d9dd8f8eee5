"""The real cloud in a process of its own, with real weights, as a user would start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 600


@dataclass
class Live:
    """A running cloud. `key` is an admin key."""

    url: str
    key: str
    data: Path
    process: subprocess.Popen[str]

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(60)


def start(data: Path, *options: str, environment: dict[str, str] | None = None) -> Live:
    """Run `atoll up --json` and wait for its line. Models may be chosen with --models."""
    argv = [sys.executable, "-m", "atoll.cli", "up", "--json", "--port", "0", "--data", str(data), *options]
    log = (data / "up.log").open("w") if data.exists() else subprocess.DEVNULL
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
    )
    assert process.stdout is not None
    deadline = time.monotonic() + START_SECONDS
    line = process.stdout.readline()
    if not line or time.monotonic() > deadline:
        process.kill()
        said = (data / "up.log").read_text() if data.exists() else ""
        raise AssertionError(f"atoll up did not start: {said[-2000:]}")
    told = json.loads(line)
    assert "url" in told, told
    return Live(told["url"], told["key"], data, process)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One cloud with all embedded models for the whole session."""
    cloud = start(tmp_path_factory.mktemp("live"))
    yield cloud
    assert cloud.stop() == 0


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Start clouds of one's own; they are killed at the end if still there."""
    clouds: list[Live] = []

    def run(*options: str, data: Path | None = None, environment: dict[str, str] | None = None) -> Live:
        cloud = start(data or tmp_path, *options, environment=environment)
        clouds.append(cloud)
        return cloud

    yield run
    for cloud in clouds:
        if cloud.process.poll() is None:
            cloud.process.kill()
            cloud.process.wait(10)
