"""Steps that travel to a cluster: what is known without one. Ray itself is an extra; bench/same_on_ray.py tries it."""

from __future__ import annotations

import io
import socket
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import job_fakes
import pytest
from job_support import open_desk, settle

from atoll.core.errors import AtollError, NotInstalled, SetupError
from atoll.core.runs import Cancelled, Order, Step
from atoll.jobs import cluster
from atoll.jobs.cluster import Cluster, Desk, pack, unpack
from atoll.jobs.figures import figures
from atoll.jobs.steps import Job


def job(out: Path) -> Job:
    return Job(job_fakes.STAGES["draw"], job_fakes.Draw(3), {}, out)


def test_a_stage_makes_there_what_it_makes_here(tmp_path: Path) -> None:
    here, there, total = (tmp_path / name for name in ("here", "there", "total"))
    here.mkdir()
    total.mkdir()
    with figures(tmp_path / "figures", lambda: False) as report:
        job_fakes.draw(job_fakes.Draw(3), {}, here, report)
        job_fakes.add(job_fakes.Nothing(), {"numbers": here}, total, report)
    desk = Desk()
    made, versions = desk.work(job_fakes.MODULE, "draw", {"count": 3}, {})
    unpack(made, there)
    assert sorted(p.name for p in there.iterdir()) == ["numbers.txt"], "what a stage works with stays there"
    assert (there / "numbers.txt").read_bytes() == (here / "numbers.txt").read_bytes()
    assert desk.last() == (3, 3, {"mean": pytest.approx(0.42, abs=0.5)}) and desk.last() is None
    assert "python" in versions
    made, _ = desk.work(job_fakes.MODULE, "add", {}, {"numbers": pack(there)})
    added = unpack(made, tmp_path / "added")
    assert (added / "nested/sum.txt").read_bytes() == (total / "nested/sum.txt").read_bytes()


def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../out"), io.BytesIO())
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(buffer.getvalue(), tmp_path / "in")


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with figures(tmp_path / "f", lambda: False) as report, pytest.raises(NotInstalled, match=r"atoll\[ray\]"):
        Cluster("local", job_fakes.MODULE).run(job(tmp_path), report)


class Ray(SimpleNamespace):
    """As much of Ray as a step needs. Calls are done at once, those of a full cluster never; `fails` is what `get`
    raises."""

    class RayError(Exception):
        pass

    class RayActorError(RayError):
        pass

    class RayTaskError(RayError):
        pass

    def __init__(self, full: bool = False, fails: Exception | None = None) -> None:
        super().__init__(exceptions=Ray, full=full, fails=fails, killed=0)

    def remote(self, made: Any) -> Any:
        def call(method: str) -> Any:
            return SimpleNamespace(remote=lambda *given: lambda: getattr(desk, method)(*given))

        desk = made()
        actor = SimpleNamespace(work=call("work"), last=call("last"))
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: actor))

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return ([], calls) if self.full else (calls, [])

    def get(self, call: Any) -> Any:
        if self.fails:
            raise self.fails
        return call()

    def kill(self, actor: Any) -> None:
        self.killed += 1


def run_on(ray: Ray, out: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool = False) -> Path:
    """The step's figures; `out` is made."""
    monkeypatch.setattr(Cluster, "_connected", lambda _: nullcontext(ray))
    told = out.with_suffix(".jsonl")
    with figures(told, lambda: cancelled) as report:
        Cluster("ray://head:10001", job_fakes.MODULE).run(job(out), report)
    return told


def test_a_step_that_waits_for_the_cluster_says_so_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "QUIET_S", 0.0)
    with pytest.raises(Cancelled):
        run_on(Ray(full=True), tmp_path / "out", monkeypatch, cancelled=True)
    monkeypatch.setattr(cluster, "PLACE_S", 0.05)
    ray = Ray(full=True)
    with pytest.raises(SetupError, match="'ray://head:10001' had no free CPU"):
        run_on(ray, tmp_path / "out", monkeypatch)
    assert ray.killed == 1
    assert "waits_for_cluster_s" in (tmp_path / "out.jsonl").read_text()
    run_on(Ray(), tmp_path / "out", monkeypatch)
    assert (tmp_path / "out/numbers.txt").exists()


def test_what_the_cluster_fails_with_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AtollError, match="the cluster lost this step 3 times: RayActorError"):
        run_on(Ray(fails=Ray.RayActorError()), tmp_path / "out", monkeypatch)
    with pytest.raises(AtollError, match=r"the cluster failed at this step: out of memory$"):
        run_on(Ray(fails=Ray.RayError("out of memory\nand more")), tmp_path / "out", monkeypatch)


def test_a_cluster_that_is_not_there_fails_the_run_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"ray://127.0.0.1:{free.getsockname()[1]}"
    with figures(tmp_path / "f", lambda: False) as report, pytest.raises(SetupError, match=address):
        Cluster(address, job_fakes.MODULE).run(job(tmp_path), report)
    desk = open_desk(tmp_path)
    row = settle(desk, desk.submit(Order((Step("a", "draw"),), ray=address))["id"])
    assert row["state"] == "failed" and address in row["error"]["message"]
    desk.close()
