"""What is shown of a run while it goes on, and when it has ended."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from atoll import terminal

SHOWN = 4


class Watch:
    """A bar a step with its latest figures, on stderr; without a terminal a line whenever a step changes."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._states: dict[str, str] = {}
        self._renderers: set[str] = set()
        self._trouble = ""

    def __enter__(self) -> Watch:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:<12}"), BarColumn(24), TextColumn("{task.percentage:>3.0f} %"))
            console = Console(stderr=True)
            self._bars = Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[told]}"), console=console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def take(self, name: str, data: Any) -> None:
        """One event of a run."""
        if name != "run" or self._quiet:
            return
        trouble = data["error"]["message"] if data["error"] and data["state"] == "running" else ""
        if trouble not in ("", self._trouble):
            print(terminal.printable(trouble), file=sys.stderr)
        self._trouble = trouble
        for step in data["steps"]:
            if step.get("renderer") and step["name"] not in self._renderers:
                self._renderers.add(step["name"])
                print(terminal.printable(f"{step['name']}: pictures by {step['renderer']}"), file=sys.stderr)
            if self._bars is not None:
                self._bar(step)
            elif step["state"] != self._states.get(step["name"], "waiting"):
                print(f"{step['name']}: {step['state']}  {brief(step['figures'])}".rstrip(), file=sys.stderr)
            self._states[step["name"]] = step["state"]

    def _bar(self, step: Mapping[str, Any]) -> None:
        name, state = step["name"], step["state"]
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None, start=False, told="")
        task, before = self._tasks[name], self._states.get(name)
        if state == "running" and before != "running":
            self._bars.start_task(task)
        total = step["total"] or None
        done = total or 1 if state == "done" else step["done"]
        told = state if state in {"waiting", "failed"} else brief(step["figures"])
        self._bars.update(task, completed=done, total=total or (1 if state == "done" else None), told=told)
        if state in {"done", "failed"} and before not in {"done", "failed"}:
            self._bars.stop_task(task)


def brief(figures: Mapping[str, float]) -> str:
    """The first few figures, those of speed last."""
    ordered = sorted(figures.items(), key=lambda item: item[0].endswith("_per_second"))
    return "  ".join(f"{name} {number(value)}" for name, value in ordered[:SHOWN])


def number(value: float) -> str:
    """About four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def tell(row: Mapping[str, Any]) -> None:
    """A run on stdout."""
    print(f"{row['id']} ({row['name']}, seed {row['seed']}) is {row['state']}")
    steps = [(s["name"], s["state"], s["kind"], (s["digest"] or "-")[:12], brief(s["figures"])) for s in row["steps"]]
    terminal.table(("STEP", "STATE", "MADE", "DIGEST", "FIGURES"), steps)
    if row["error"]:
        where = f" ({row['error']['param']})" if row["error"]["param"] else ""
        print(f"\n{terminal.printable(row['error']['message'])}{where}")
        print(f"When the cause is gone, go on where it stopped: atoll runs resume {row['id']}")
