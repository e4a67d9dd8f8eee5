"""A command at a terminal of its own, as a person would run it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`atoll` with these arguments and this environment besides."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.master, slave = pty.openpty()
        argv, env = [sys.executable, "-m", "atoll.cli", *arguments], {**os.environ, **environment}
        self.process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str, within: float = 60) -> str:
        """What was shown since the last call, up to and including `pattern`."""
        deadline = time.monotonic() + within
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen = ESCAPES.sub("", self.seen + os.read(self.master, 65536).decode("utf-8", "replace"))
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def type(self, line: str) -> None:
        os.write(self.master, line.encode() + b"\n")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.master)
