"""Steps on a Ray cluster: the inputs travel there, the stage runs in an actor, what it made travels back.

A stage depends on nothing but its config and inputs, so it makes the same there as here. A node that is lost costs the
step that ran on it, which begins anew on another one.
"""

from __future__ import annotations

import io
import socket
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.core.errors import AtollError, NotInstalled, SetupError
from atoll.core.runs import Reporter
from atoll.jobs.artifacts import WORK
from atoll.jobs.steps import Job, configure, load_named, made_with, plain

POLL_S = 0.3
CONNECT_S = 10.0
NODES_LOST = 3
PLACE_S = 1800.0
QUIET_S = 5.0
"""A step that waits longer for a free CPU of the cluster says so."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The Ray cluster at `address`; "local" starts one on this machine. `stages` is the "module:function" that gives
    stages by name there, where Atoll is installed too."""

    address: str
    stages: str

    def run(self, job: Job, report: Reporter) -> Mapping[str, str]:
        """Raises Cancelled, NotInstalled, SetupError where there is no such cluster or no room on it, AtollError where
        it fails, or what the stage raised."""
        inputs = {role: pack(folder) for role, folder in job.inputs.items()}
        with self._connected() as ray:
            for _ in range(NODES_LOST):
                try:
                    made, with_versions = self._attempt(ray, job, inputs, report)
                except ray.exceptions.RayActorError as error:
                    why = _brief(error)
                    continue
                except ray.exceptions.RayError as error:
                    raise AtollError(f"the cluster failed at this step: {_brief(error)}") from None
                unpack(made, job.out)
                return with_versions
        raise AtollError(f"the cluster lost this step {NODES_LOST} times: {why}")

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        self._knock()
        try:
            import ray
        except ModuleNotFoundError:
            raise NotInstalled("'--ray' needs the package ray; run: pip install 'atoll[ray]'") from None
        try:
            ray.init(self.address, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SetupError(f"no Ray cluster answers at '{self.address}': {error}") from None
        try:
            yield ray
        finally:
            ray.shutdown()

    def _knock(self) -> None:
        """Ray itself tries for minutes to reach an address where nobody is. Raises SetupError."""
        host, _, port = self.address.removeprefix("ray://").rpartition(":")
        if not (host and port.isdigit()):
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise SetupError(f"no Ray cluster answers at '{self.address}': {error}") from None

    def _attempt(
        self, ray: Any, job: Job, inputs: Mapping[str, bytes], report: Reporter
    ) -> tuple[bytes, Mapping[str, str]]:
        actor = ray.remote(Desk).options(num_cpus=1, max_concurrency=2).remote()
        try:
            work = actor.work.remote(self.stages, job.stage.name, plain(job.stage, job.config), inputs)
            self._follow(ray, actor, work, report)
            return ray.get(work)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            ray.kill(actor)

    def _follow(self, ray: Any, actor: Any, work: Any, report: Reporter) -> None:
        """Tell on what the stage tells, until it is done. It has a place on the cluster once it answers."""
        placed, began, asked = False, time.monotonic(), actor.last.remote()
        while not ray.wait([work], timeout=POLL_S)[0]:
            if ray.wait([asked], timeout=0)[0]:
                placed, last, asked = True, ray.get(asked), actor.last.remote()
                if last is not None:
                    done, total, figures = last
                    report.progress(done, total, **figures)
            elif not placed:
                self._waits(time.monotonic() - began, report)

    def _waits(self, waited: float, report: Reporter) -> None:
        if waited > PLACE_S:
            raise SetupError(f"the Ray cluster at '{self.address}' had no free CPU for {PLACE_S / 60:g} minutes")
        report.progress(0, 1, **({"waits_for_cluster_s": round(waited)} if waited > QUIET_S else {}))


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class Desk:
    """The actor. `work` and `last` are called at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[float, float, dict[str, float]] | None = None

    def work(
        self, stages: str, name: str, settings: Mapping[str, Any], inputs: Mapping[str, bytes]
    ) -> tuple[bytes, Mapping[str, str]]:
        """What the stage made, packed, and the versions it was made with. Raises what it raises."""
        stage = load_named(stages)(name)
        with tempfile.TemporaryDirectory() as folder:
            there = {role: unpack(packed, Path(folder) / "inputs" / role) for role, packed in inputs.items()}
            (out := Path(folder) / "out").mkdir()
            stage.run(configure(stage, settings), there, out, self)
            return pack(out), made_with(out)

    def progress(self, done: float, total: float, **figures: float) -> None:
        with self._lock:
            earlier = self._last[2] if self._last else {}
            self._last = (done, total, {**earlier, **figures})

    def last(self) -> tuple[float, float, dict[str, float]] | None:
        """What was told since this was last asked."""
        with self._lock:
            last, self._last = self._last, None
        return last


def pack(folder: Path) -> bytes:
    """A folder without its work, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and inside.parts[0] != WORK:
                archive.add(path, str(inside))
    return buffer.getvalue()


def unpack(packed: bytes, folder: Path) -> Path:
    """Only plain files below `folder` come out of the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder
