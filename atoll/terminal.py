"""What the command line shows: progress, the welcome, errors."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from atoll.core.errors import AtollError


class Startup:
    """Progress bars while models arrive and load, then where the cloud is. On stderr, except the JSON object."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Startup:
        if not self.as_json:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def progress(self, label: str, done: int, total: int) -> None:
        if self._bars is None:
            return
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=total or None)
        self._bars.update(self._tasks[label], completed=done, total=total or None)
        if total and done >= total:
            self._bars.update(self._tasks[label], visible=False)

    def announce(self, cloud: Any) -> None:
        self._stop()
        states = cloud.library.states()
        if self.as_json:
            models = {name: value["state"] for name, value in states.items()}
            print(json.dumps({"url": cloud.url, "key": cloud.secret, "models": models}), flush=True)
            return
        note = "keep it, it is not shown again" if cloud.first_run else "for this start, at most a week"
        body = '{"model":"max","stream":true,"messages":[{"role":"user","content":"Say hello."}]}'
        print(f"\nAtoll is up.\n\n  Console  {cloud.url}/\n  API key  {cloud.secret}   ({note})\n\nTry it:\n")
        print(
            f"curl -N {cloud.url}/v1/chat/completions -H 'Authorization: Bearer {cloud.secret}'"
            f" -H 'Content-Type: application/json' -d '{body}'\n"
        )
        for name, value in states.items():
            mark = "ready " if value["state"] == "ready" else value["state"].upper()
            print(f"  {mark}  {name}  {value['detail']}".rstrip())
        print("\nStop with Ctrl-C.", flush=True)

    def fail(self, error: AtollError) -> None:
        self._stop()
        complain(error, self.as_json)


def complain(error: AtollError, as_json: bool) -> None:
    """One line on stderr; with --json the error as an object on stdout too."""
    if as_json:
        print(json.dumps({"error": {"message": error.message, "param": error.param, "code": error.code}}), flush=True)
    print(f"atoll: {error.message}" + (f" ({error.param})" if error.param else ""), file=sys.stderr)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], total: Sequence[Any] | None = None) -> None:
    """Columns as wide as their longest cell, numbers to the right; the last column is cut at the terminal's edge."""
    cells = [[_cell(value) for value in row] for row in (*rows, *([total] if total else []))]
    right = [bool(cells) and all(_number(row[i]) for row in cells) for i in range(len(columns))]
    widths = [max(len(name), *(len(row[i]) for row in cells)) if cells else len(name) for i, name in enumerate(columns)]
    edge = shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else 10_000
    for number, row in enumerate([list(columns), *cells]):
        if total and number == len(cells):
            print("-" * min(edge, sum(widths) + 2 * (len(widths) - 1)))
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        print("  ".join(padded).rstrip()[:edge])


COUNTS = ("requests", "failed", "input", "output", "cached", "cost")


def sums(rows: Iterable[dict[str, Any]], by: str | None) -> Any:
    """COUNTS added up over all rows, or (as a list) over those with the same value of `by`."""
    groups: dict[Any, dict[str, Any]] = {}
    for row in rows:
        group = groups.setdefault(row[by] if by else None, dict.fromkeys(COUNTS, 0))
        for name in COUNTS:
            group[name] = round(group[name] + row[name], 9)
    if by is None:
        return groups.get(None, dict.fromkeys(COUNTS, 0))
    return [{by: value, **group} for value, group in sorted(groups.items())]


def usage(rows: Sequence[dict[str, Any]], grouped: dict[str, list[dict[str, Any]]]) -> None:
    if not rows:
        print("Nothing was used in this time.")
        return
    heads = ("REQUESTS", "FAILED", "INPUT", "OUTPUT", "CACHED", "COST $")
    names = ("day", "key_id", "model")
    body = [[row[name] for name in (*names, *COUNTS)] for row in rows]
    table(("DAY", "KEY", "MODEL", *heads), body, ["total", "", "", *sums(rows, None).values()])
    for name in names:
        print()
        table((name.removesuffix("_id").upper(), *heads), [list(group.values()) for group in grouped[f"by_{name}"]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else printable(str(value))


def _number(text: str) -> bool:
    return text in {"-", ""} or text.replace(".", "", 1).replace(",", "").lstrip("$").isdigit()


def printable(text: str) -> str:
    """Text from elsewhere without what could steer a terminal."""
    return "".join(c for c in text if c.isprintable())


def size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def configure_logging(level: str) -> None:
    """One JSON object a line on stderr; never a secret, never a prompt."""

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            line = {"at": self.formatTime(record), "level": record.levelname.lower(), "logger": record.name}
            line["message"] = record.getMessage()
            if record.exc_info:
                line["trace"] = self.formatException(record.exc_info)
            return json.dumps(line)

    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("atoll").setLevel(level.upper())
