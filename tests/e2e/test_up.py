"""`atoll up` as a person sees it: at a terminal, with the line that it offers to try, and Ctrl-C."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import alive, children_of
from terminals import Terminal

pytestmark = pytest.mark.xdist_group("cli")

START_S, STOP_S = 120, 10


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Terminal]:
    """With the language model alone."""
    up = ("up", "--port", "0", "--data", str(tmp_path / "up"), "--models", "smollm2-135m")
    opened = Terminal(*up, ATOLL_THREADS="1", TERM="xterm", COLUMNS="100")
    yield opened
    opened.close()


def test_the_line_to_try_answers_and_ctrl_c_leaves_nothing_behind(screen: Terminal) -> None:
    shown = screen.until(r"Stop with Ctrl-C\.", START_S)
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
    screen.interrupt()
    assert screen.process.wait(STOP_S) == 0
    deadline = time.monotonic() + STOP_S
    while alive(children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(children)
