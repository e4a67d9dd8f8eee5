"""The processes that a cloud started, found in /proc."""

from __future__ import annotations

import time
from pathlib import Path


def child_of(parent: int, module: str, within: float = 0) -> int:
    """The child of `parent` that runs `python -m module`. Waits for it up to `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is(entry, parent, module):
                return int(entry.name)
        assert time.monotonic() < deadline, f"process {parent} runs no {module}"
        time.sleep(0.05)


def children_of(parent: int) -> list[int]:
    return [int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit() and _parent(e) == parent]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def resident(pid: int) -> int:
    """Bytes of memory in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def _is(entry: Path, parent: int, module: str) -> bool:
    try:
        return _parent(entry) == parent and module.encode() in (entry / "cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return False


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
