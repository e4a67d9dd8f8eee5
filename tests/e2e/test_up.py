"""`atoll up` as a person sees it: at a terminal, with the line that it offers to try, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import alive, children_of

pytestmark = pytest.mark.xdist_group("cli")

START_S, STOP_S = 120, 10
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """`atoll up` with the language model alone, at a terminal of its own."""

    def __init__(self, data: Path) -> None:
        self.master, slave = pty.openpty()
        argv = [sys.executable, "-m", "atoll.cli", "up", "--port", "0", "--data", str(data), "--models", "smollm2-135m"]
        env = {**os.environ, "ATOLL_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)

    def until(self, pattern: str) -> str:
        """Everything that was shown up to now, once `pattern` is."""
        seen, deadline = "", time.monotonic() + START_S
        while not re.search(pattern, seen):
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {seen!r}"
            seen = ESCAPES.sub("", seen + os.read(self.master, 65536).decode("utf-8", "replace"))
        return seen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self.master)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    opened = Screen(tmp_path / "up")
    yield opened
    opened.close()


def test_the_line_to_try_answers_and_ctrl_c_leaves_nothing_behind(screen: Screen) -> None:
    shown = screen.until(r"Stop with Ctrl-C\.")
    assert "Starting smollm2-135m" in shown and re.search(r"^ +ready +smollm2-135m", shown, re.MULTILINE)
    assert re.search(r"Console  http://127\.0\.0\.1:\d+/", shown) and "keep it" in shown

    line = next(line for line in shown.splitlines() if line.startswith("curl "))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    events = [event.removeprefix("data: ") for event in done.stdout.splitlines() if event]
    assert done.returncode == 0 and events[-1] == "[DONE]", done
    chunks = [json.loads(event) for event in events[:-1]]
    words = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert len(list(filter(None, words))) > 1

    children = children_of(screen.process.pid)
    assert children
    screen.process.send_signal(signal.SIGINT)
    assert screen.process.wait(STOP_S) == 0
    deadline = time.monotonic() + STOP_S
    while alive(children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(children)
