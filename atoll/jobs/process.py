"""The worker as a child process: started when there is work, started again when it dies with work left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from atoll.jobs.durable import Home

log = logging.getLogger("atoll.jobs")

LOG_BYTES = 1 << 20
STABLE_S = 30.0
LONGEST_WAIT_S = 30.0


class Hand:
    """At most one worker of this process. `environment` is the worker's."""

    def __init__(self, home: Home, environment: Mapping[str, str]):
        self.home, self.environment = home, environment
        self._child: subprocess.Popen[bytes] | None = None
        self._started = self._not_before = 0.0
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child and self._child.poll() is None else None

    @property
    def trouble(self) -> str:
        """What keeps the worker from its work, if anything does."""
        times = f"{self.deaths} times in a row" if self.deaths > 1 else "unexpectedly"
        return f"the worker ended {times} and is started again; {self._log} may say why" if self.deaths else ""

    def tend(self, work_left: bool) -> None:
        """Start a worker if there is work and none at it, here or in another process. To be called now and then."""
        now = time.monotonic()
        if self._child is not None and self._child.poll() is not None:
            self._mourn(now)
        elif self._child is not None and now - self._started > STABLE_S:
            self.deaths = 0
        if work_left and self._child is None and now >= self._not_before and not self._taken():
            self._start(now)

    def stop(self) -> None:
        """End the worker at once, if this process has one: its run goes on with the next."""
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)
        assert child.stdin is not None
        child.stdin.close()

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines that workers printed."""
        try:
            return self._log.read_text(errors="replace")[-16384:].splitlines()[-lines:]
        except FileNotFoundError:
            return []

    @property
    def _log(self) -> Path:
        return self.home.runs / "worker.log"

    def _mourn(self, now: float) -> None:
        child, self._child = self._child, None
        assert child is not None and child.stdin is not None
        child.stdin.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        if child.returncode == 0:
            return
        self.deaths += 1
        self._not_before = now + min(LONGEST_WAIT_S, 0.5 * 2.0 ** min(self.deaths - 1, 10))
        log.warning("the worker of runs ended with %s; see %s", child.returncode, self._log)

    def _taken(self) -> bool:
        try:
            with (self.home.runs / "worker.lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def _start(self, now: float) -> None:
        self.home.runs.mkdir(parents=True, exist_ok=True)
        fresh = not self._log.exists() or self._log.stat().st_size > LOG_BYTES
        with self._log.open("wb" if fresh else "ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "atoll.jobs"],
                env=dict(self.environment),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started = now
        told = {**asdict(self.home), "data": str(self.home.data.absolute())}
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(told).encode() + b"\n")
            self._child.stdin.flush()
