"""The stage `serve`, and how what it made comes into service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from served import ADMIN, Shelf, gated, mlp

from atoll.core.errors import InvalidRequest, NotFound, SetupError
from atoll.core.runs import Artifact
from atoll.jobs.artifacts import Shelf as Artifacts
from atoll.physical.serve import intake
from atoll.physical.serve.intake import Intake
from atoll.physical.serve.record import fingerprint
from atoll.physical.serve.service import Service
from atoll.physical.serve.stage import STAGE, Config


class Quiet:
    def progress(self, done: float, total: float, **figures: float) -> None: ...


def serve(data: Path, run: str, gain: float, name: str = "arm", incumbent: Path | None = None) -> str:
    """A run's artifacts, its service last; the digest of that."""
    shelf, folders = Artifacts(data), {}
    pair = gated(made(data / "runs" / run), mlp(gain=gain), incumbent=incumbent)
    for role, given in zip(("policy", "report"), pair, strict=True):
        folders[role] = Path(given)
        shelf.seal(Path(given), Artifact(role, "", "test", {}))
    out = made(data / "runs" / run / "serve")
    STAGE.run(Config(name), folders, out, Quiet())
    return shelf.seal(out, Artifact("service", "", "serve", {})).digest


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@contextmanager
def taking(service: Service, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(intake, "LOOK_S", 0.01)
    task = asyncio.get_running_loop().create_task(Intake(service, data / "artifacts", Artifacts(data).folder).run())
    yield
    task.cancel()


async def looked(data: Path) -> None:
    """Everything that was made has been looked at."""
    mark, newest = data / "policies/intake.json", max(p.stat().st_mtime_ns for p in (data / "artifacts").iterdir())
    async with asyncio.timeout(10):
        while not mark.exists() or json.loads(mark.read_text())["at"] < newest:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def promoted(service: Service) -> str:
    return service.rows()[0]["promoted"]["policy"]


async def test_what_the_stage_made_is_served_and_a_rollback_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    service = Service(tmp_path / "policies", Shelf(), Artifacts(tmp_path).folder)
    first, second = tmp_path / "runs/a/policy", tmp_path / "runs/b/policy"
    serve(tmp_path, "a", 1.0)
    with taking(service, tmp_path, monkeypatch):
        await looked(tmp_path)
        assert promoted(service) == fingerprint(first)
        serve(tmp_path, "b", 0.5, incumbent=first)
        await looked(tmp_path)
        assert promoted(service) == fingerprint(second)
        serve(tmp_path, "c", 0.2, incumbent=first)
        await looked(tmp_path)
        assert promoted(service) == fingerprint(second)
        assert "does not compare with" in service.rows()[0]["detail"]
        await service.rollback("arm", ADMIN)
        await asyncio.sleep(0.1)
    with taking(service, tmp_path, monkeypatch):
        await asyncio.sleep(0.1)
    assert promoted(service) == fingerprint(first)
    await service.close()


async def test_what_cannot_be_served_is_listed_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shelf = Shelf(tiers={"max": "some-model"})
    service = Service(tmp_path / "policies", shelf, Artifacts(tmp_path).folder)
    serve(tmp_path, "a", 1.0, "max")
    serve(tmp_path, "b", 1.0)
    with taking(service, tmp_path, monkeypatch):
        await looked(tmp_path)
        arm, most = service.rows()
        assert (arm["state"], arm["detail"]) == ("ready", "")
        assert (most["id"], most["state"]) == ("max", "failed")
        assert "name of a model" in most["detail"]
    await service.close()
    service = Service(tmp_path / "policies", shelf, Artifacts(tmp_path).folder)
    await service.start()
    with taking(service, tmp_path, monkeypatch):
        async with asyncio.timeout(10):
            while len(service.rows()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert "name of a model" in service.rows()[1]["detail"]
    shelf.tiers.clear()
    row = await service.promote("max", str(tmp_path / "runs/a/policy"), str(tmp_path / "runs/a/report"), ADMIN)
    assert row["detail"] == ""
    await service.close()


@pytest.mark.parametrize("error", [SetupError("no space left on device"), OSError(28, "no space left on device")])
async def test_a_full_disk_is_waited_for(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise error

    service = Service(tmp_path / "policies", Shelf(), Artifacts(tmp_path).folder)
    with monkeypatch.context() as patch:
        patch.setattr(service.records, "admit", full)
        patch.setattr(intake, "write_whole", full)
        with taking(service, tmp_path, monkeypatch):
            serve(tmp_path, "a", 1.0)
            async with asyncio.timeout(10):
                while not service.rows():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert "no space left" in service.rows()[0]["detail"]
            patch.undo()
            monkeypatch.setattr(intake, "LOOK_S", 0.01)
            await looked(tmp_path)
    assert promoted(service) == fingerprint(tmp_path / "runs/a/policy")
    assert service.rows()[0]["detail"] == ""
    await service.close()


async def test_a_service_can_be_promoted_by_its_digest(tmp_path: Path):
    service = Service(tmp_path / "policies", Shelf(), Artifacts(tmp_path).folder)
    assert service.records.promoted(Artifacts(tmp_path).folder, "elsewhere") is None
    row = await service.promote("elsewhere", serve(tmp_path, "a", 1.0), "", ADMIN)
    assert row["promoted"]["policy"] == fingerprint(tmp_path / "runs/a/policy")
    assert service.records.promoted(Artifacts(tmp_path).folder, "elsewhere") == row["promoted"]["policy"]
    with pytest.raises(NotFound, match="neither the digest"):
        await service.promote("elsewhere", str(tmp_path / "runs/a/policy"), "", ADMIN)
    await service.close()


def test_the_stage_leaves_the_same_files_and_refuses_what_has_not_passed(tmp_path: Path):
    policy, report = map(Path, gated(made(tmp_path / "a")))
    for out in ("one", "two"):
        STAGE.run(Config("arm"), {"policy": policy, "report": report}, made(tmp_path / out), Quiet())
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    told = json.loads((tmp_path / "one/service.json").read_text())
    assert told == {"name": "arm", "policy": fingerprint(policy), "report": fingerprint(report)}
    policy, report = map(Path, gated(made(tmp_path / "b"), decision="fail"))
    with pytest.raises(InvalidRequest, match="has not passed"):
        STAGE.run(Config("arm"), {"policy": policy, "report": report}, made(tmp_path / "three"), Quiet())
    policy, report = map(Path, gated(made(tmp_path / "c")))
    told = json.loads((report / "report.json").read_text())
    told["evidence"]["nominal"], told["rule"]["success"] = {"successes": 40, "episodes": 100}, 0
    told["rule"]["gap"] = 1
    (report / "report.json").write_text(json.dumps(told))
    with pytest.raises(InvalidRequest, match="less than every policy must show: success: 40 of 100"):
        STAGE.run(Config("arm"), {"policy": policy, "report": report}, made(tmp_path / "four"), Quiet())
    with pytest.raises(InvalidRequest, match="lower-case"):
        Config("Arm 1")
    with suppress(FileNotFoundError):
        assert not (tmp_path / "three/service.json").exists()
