"""Desks with quick stages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import job_fakes

from atoll.core.runs import Order, Step
from atoll.jobs.desk import Desk
from atoll.jobs.durable import Home
from atoll.jobs.process import Hand


def open_desk(data: Path, **options: Any) -> Desk:
    home = Home(data, stages=job_fakes.MODULE, **{"grace": 1.0, "idle": 20.0, "lost": 2.0, **options})
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return Desk(home, Hand(home, {**os.environ, "PYTHONPATH": path}), (*job_fakes.STAGES, "rl"), job_fakes.load)


def settle(desk: Desk, id: str, until: Callable[[dict[str, Any]], bool] | None = None, seconds: float = 60) -> Any:
    """Tend the desk until run `id` has ended, or `until` holds of it."""
    deadline = time.monotonic() + seconds
    while True:
        desk.tend()
        row = desk.row(id)
        if until(row) if until else row["state"] in {"done", "failed", "cancelled"}:
            return row
        assert time.monotonic() < deadline, f"still {row}; the worker said: {desk.hand.log_tail()}"
        time.sleep(0.05)


def chain(count: int = 20, pause: float = 0.0, seed: int = 0) -> Order:
    """Draw numbers, then add them."""
    drawn = Step("drawn", "draw", {"count": count, "pause": pause})
    return Order((drawn, Step("sum", "add", {}, {"numbers": "drawn"})), "chain", seed)


def digests(row: dict[str, Any]) -> list[str]:
    return [step["digest"] for step in row["steps"]]
