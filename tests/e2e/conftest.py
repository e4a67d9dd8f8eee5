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
        code = self.process.wait(60)
        self.close()
        return code

    def close(self) -> None:
        """Kill what is left and let go of the pipe."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def start(data: Path, *options: str, environment: dict[str, str] | None = None) -> Live:
    """Run `atoll up --json` and wait for its line. Models may be chosen with --models."""
    argv = [sys.executable, "-m", "atoll.cli", "up", "--json", "--port", "0", "--data", str(data), *options]
    data.mkdir(exist_ok=True)
    with (data / "up.log").open("w") as log:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
        )
    assert process.stdout is not None
    deadline = time.monotonic() + START_SECONDS
    line = process.stdout.readline()
    if not line or time.monotonic() > deadline:
        process.kill()
        process.wait(10)
        process.stdout.close()
        raise AssertionError(f"atoll up did not start: {(data / 'up.log').read_text()[-2000:]}")
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
        cloud.close()
