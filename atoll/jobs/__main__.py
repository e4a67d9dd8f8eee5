"""python -m atoll.jobs: the worker, as `process.Hand` starts it. Its options are one line of JSON on standard input,
which stays open as long as the parent lives."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from atoll.jobs.durable import Home
from atoll.jobs.worker import work

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    told = json.loads(sys.stdin.buffer.readline())
    work(Home(**{**told, "data": Path(told["data"])}), with_parent=True)
