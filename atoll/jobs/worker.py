"""The process that carries runs out, one at a time. It may be killed at any moment: the next one goes on."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from atoll.core.runs import Order
from atoll.jobs import durable
from atoll.jobs.artifacts import Shelf
from atoll.jobs.durable import Home
from atoll.jobs.figures import figures
from atoll.jobs.steps import Bench, Run, execute, from_json, here, load_named

log = logging.getLogger("atoll.jobs.worker")

TICK_S = 0.5
QUEUE_POLL_S = 0.2


@dataclass(slots=True)
class Current:
    """The run that is being worked on, as the thread that watches over it sees it."""

    run: str = ""
    cancelled: threading.Event = field(default_factory=threading.Event)
    cancelled_at: float = 0.0


def work(home: Home, with_parent: bool) -> None:
    """Carry out what is ordered, until there was nothing to do for `home.idle` seconds. Returns at once where another
    worker is at it. `with_parent`: end when standard input ends."""
    lock = take_lock(home)
    if lock is None:
        return
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    if with_parent:
        threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end())
    current = Current()
    with launched(home, current):
        watch(home, current)
    lock.close()


def take_lock(home: Home) -> IO[bytes] | None:
    """The lock of the worker of this folder; None where it is taken. Closing it gives it back."""
    home.runs.mkdir(parents=True, exist_ok=True)
    file = (home.runs / "worker.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def launched(home: Home, current: Current) -> Iterator[None]:
    """DBOS, with the workflow that a run is. Runs that a dead worker left are taken up again."""
    dbos = durable.require().DBOS
    dbos(config=durable.config(home))
    load = load_named(home.stages)

    def step(run: str, order: Order, index: int) -> str:
        bench = Bench(Shelf(home.data), home.runs / run, load, doer(order, home))
        bench.folder.mkdir(parents=True, exist_ok=True)
        path = bench.folder / f"{order.steps[index].name}.jsonl"
        with figures(path, current.cancelled.is_set) as report:
            return execute(bench, order, index, report)

    @dbos.workflow(name=durable.WORKFLOW, max_recovery_attempts=durable.RECOVERIES)
    def run(told: dict[str, Any]) -> dict[str, str]:
        id, order = dbos.workflow_id, from_json(told)
        current.cancelled.clear()
        current.run = id
        try:
            return {s.name: dbos.run_step({"name": s.name}, step, id, order, i) for i, s in enumerate(order.steps)}
        finally:
            current.run = ""

    dbos.launch()
    dbos.register_queue(home.application(), worker_concurrency=1, polling_interval_sec=QUEUE_POLL_S)
    try:
        yield
    finally:
        dbos.destroy()


def doer(order: Order, home: Home) -> Run:
    """Who runs the stages of this order: this process, or a Ray cluster."""
    if not order.ray:
        return here
    from atoll.jobs.cluster import Cluster

    return Cluster(order.ray, home.stages).run


def watch(home: Home, current: Current) -> None:
    """Tell the step under way when its run is cancelled, and end this process with it when it does not listen. End it
    too when a run is under way for the database but not here: how it ended could not be written down."""
    dbos = durable.require().DBOS
    busy = at_one = time.monotonic()
    while time.monotonic() - busy < home.idle:
        time.sleep(TICK_S)
        run, now = current.run, time.monotonic()
        if run:
            busy = at_one = now
            status = dbos.get_workflow_status(run)
            if status is not None and status.status == "CANCELLED" and not current.cancelled.is_set():
                current.cancelled_at = now
                current.cancelled.set()
            if current.cancelled.is_set() and current.run == run and now - current.cancelled_at > home.grace:
                log.error("run %s was cancelled and did not stop in %g s; the worker ends with it", run, home.grace)
                end()
            continue
        left = dbos.list_workflows(status=["ENQUEUED", "PENDING"], load_input=False)
        busy = now if left else busy
        if all(status.status != "PENDING" for status in left):
            at_one = now
        elif now - at_one > home.lost:
            log.error("how run %s ended could not be written down; the worker begins anew", left[0].workflow_id)
            end()


def end() -> None:
    """Leave at once, with all processes that stages have started. What is unfinished, the next worker goes on with."""
    os.killpg(0, signal.SIGKILL)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    end()
