"""What the command line shows: progress, the welcome, errors."""

from __future__ import annotations

import json
import logging
import sys
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
        if self.as_json:
            print(json.dumps({"error": {"message": error.message, "code": error.code}}), flush=True)
        print(f"atoll: {error.message}", file=sys.stderr)


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
