"""Steps that travel to a cluster: what is known without one. Ray itself is an extra; bench/same_on_ray.py tries it."""

from __future__ import annotations

import io
import socket
import sys
import tarfile
from pathlib import Path

import job_fakes
import pytest
from job_support import open_desk, settle

from atoll.core.errors import NotInstalled, SetupError
from atoll.core.runs import Order, Step
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


def test_a_cluster_that_is_not_there_fails_the_run_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"ray://127.0.0.1:{free.getsockname()[1]}"
    with figures(tmp_path / "f", lambda: False) as report, pytest.raises(SetupError, match=address):
        Cluster(address, job_fakes.MODULE).run(job(tmp_path), report)
    desk = open_desk(tmp_path)
    row = settle(desk, desk.submit(Order((Step("a", "draw"),), ray=address))["id"])
    assert row["state"] == "failed" and address in row["error"]["message"]
    desk.close()
