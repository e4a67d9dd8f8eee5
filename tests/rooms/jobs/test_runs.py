"""Runs from order to artifacts: what they leave, and what becomes of them when things go wrong."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_support import chain, digests, open_desk, settle

from atoll.core.errors import AtollError, Conflict, InvalidRequest, NotFound, Overloaded
from atoll.core.runs import Artifact, Order, Step
from atoll.jobs import desk as desk_module
from atoll.jobs.artifacts import Corrupt, Shelf, verify
from atoll.jobs.desk import Cursor, Desk


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with quick stages for tests that leave its worker alone."""
    opened = open_desk(tmp_path_factory.mktemp("shared"))
    yield opened
    opened.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk with quick stages, and workers of its own."""
    opened = open_desk(tmp_path)
    yield opened
    opened.close()


def test_a_run_leaves_artifacts_with_lineage(shared: Desk) -> None:
    queued = shared.submit(chain(5, seed=7))
    assert queued["state"] == "queued" and [s["state"] for s in queued["steps"]] == ["waiting", "waiting"]
    row = settle(shared, queued["id"])
    assert row["state"] == "done" and row["error"] is None
    drawn, added = (shared.shelf.get(step["digest"]) for step in row["steps"])
    numbers = (shared.shelf.folder(drawn.digest) / "numbers.txt").read_text().split()
    chance = random.Random(7)
    assert numbers == [str(chance.random()) for _ in range(5)]
    assert drawn.config == {"count": 5, "pause": 0.0, "seed": 7}
    assert added.parents == {"numbers": drawn.digest} and added.kind == "report"
    assert list(added.files) == ["nested/sum.txt"] and "python" in added.versions
    assert float(shared.shelf.file(added.digest, "nested/sum.txt").read_text()) == sum(map(float, numbers))
    assert {a["digest"] for a in shared.shelf.rows()} >= set(digests(row))
    told, cursor = shared.news(row["id"], Cursor())
    lines = dict(told)["figures"]
    assert lines[-1]["figures"] == {"sum": sum(map(float, numbers))} and lines[0]["step"] == "drawn"
    assert dict(told)["run"] == row and cursor.ended
    assert shared.news(row["id"], cursor) == ([], cursor)


def test_the_same_seed_makes_the_same_digests(shared: Desk) -> None:
    runs = [settle(shared, shared.submit(chain(3, seed=seed))["id"]) for seed in (1, 1, 2)]
    assert digests(runs[0]) == digests(runs[1]) != digests(runs[2])


def test_a_later_run_takes_an_artifact_by_its_digest(shared: Desk) -> None:
    first = settle(shared, shared.submit(chain(3))["id"])
    source = first["steps"][0]["digest"]
    row = settle(shared, shared.submit(Order((Step("again", "add", {}, {"numbers": source}),)))["id"])
    assert row["steps"][0]["digest"] == first["steps"][1]["digest"]


def with_rl(pause: float) -> Order:
    """Two quick stages and a real one."""
    learn = Step("learn", "rl", {"task": "inverted-pendulum", "steps": 20_000, "snapshots": 2})
    return Order((*chain(25, pause).steps, learn), "with rl", 3)


@pytest.mark.parametrize("seed", range(1))
def test_killed_at_random_moments_it_ends_the_same(tmp_path: Path, desk: Desk, seed: int) -> None:
    whole = digests(settle(desk, desk.submit(with_rl(0.0))["id"]))
    chance = random.Random(seed)
    id, killed = desk.submit(with_rl(0.03))["id"], []
    while len(killed) < 4:
        row = settle(desk, id, lambda row: row["state"] in {"running", "done"} and desk.hand.pid)
        if row["state"] == "done":
            break
        time.sleep(chance.uniform(0.05, 1.2))
        os.kill(desk.hand.pid or 0, signal.SIGKILL)
        killed.append(next((s["name"] for s in desk.row(id)["steps"] if s["state"] == "running"), "between"))
        settle(desk, id, lambda _: desk.hand.pid is None)
    row = settle(desk, id)
    assert (row["state"], digests(row)) == ("done", whole), f"killed in {killed}"
    assert len(killed) >= 2
    assert not list((tmp_path / "runs" / id).rglob(".work"))


def test_a_label_cut_short_is_no_part_of_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sealed(name: str, cut_short: str = "") -> Artifact:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "made.txt").write_text("made")
        if cut_short:
            (folder / cut_short).write_text("{")
        return Shelf(tmp_path).seal(folder, Artifact("report", "", "trip", {}))

    (tmp_path / "artifacts").mkdir()
    whole = sealed("whole")
    assert sealed("killed", ".artifact.json.4711").files == whole.files == verify(tmp_path / "runs" / "killed").files
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        sealed("full")
    assert [path.name for path in (tmp_path / "runs" / "full").iterdir()] == ["made.txt"]


def test_a_cancelled_run_stops_and_goes_on_where_it_was(shared: Desk) -> None:
    id = shared.submit(chain(60, 0.05))["id"]
    settle(shared, id, lambda row: row["steps"][0]["done"] > 5)
    assert shared.cancel(id)["state"] == "cancelled"
    with pytest.raises(Conflict, match="has ended"):
        shared.cancel(id)
    pid = shared.hand.pid
    other = settle(shared, shared.submit(chain(2))["id"])
    assert other["state"] == "done" and shared.hand.pid == pid, "a step that listens does not cost the worker"
    done = shared.row(id)["steps"][0]["done"]
    assert done < 60
    shared.resume(id)
    row = settle(shared, id)
    assert row["state"] == "done"
    lines = dict(shared.news(id, Cursor())[0])["figures"]
    told = [line["done"] for line in lines if line["step"] == "drawn"]
    assert row["ended_at"] > row["created_at"] and told[-1] == 60


def test_a_step_that_does_not_listen_is_ended_by_force(desk: Desk) -> None:
    id = desk.submit(Order((Step("deaf", "deaf"),)))["id"]
    waiting = desk.submit(chain(2))["id"]
    settle(desk, id, lambda row: row["state"] == "running" and row["steps"][0]["total"] == 1)
    pid = desk.hand.pid
    desk.cancel(id)
    assert settle(desk, waiting)["state"] == "done"
    assert desk.hand.pid != pid and desk.row(id)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("disk", "system_error", "No space left on device: "),
        ("value", "stage_failed", r"ValueError: the reward is not a number \(job_fakes.py, line \d+\)"),
        ("atoll", "invalid_request", "the scene has no floor"),
    ],
)
def test_a_failed_run_says_why_and_goes_on_after_the_cause_is_gone(
    shared: Desk, tmp_path: Path, kind: str, code: str, message: str
) -> None:
    mended = tmp_path / "mended"
    trip = Step("trip", "trip", {"kind": kind, "until": str(mended)}, {"numbers": "drawn"})
    row = settle(shared, shared.submit(Order((chain(3).steps[0], trip)))["id"])
    assert row["state"] == "failed" and row["error"]["code"] == code
    assert re.match(message, row["error"]["message"])
    assert [s["state"] for s in row["steps"]] == ["done", "failed"]
    made_at = shared.shelf.row(row["steps"][0]["digest"])["made_at"]
    mended.touch()
    shared.resume(row["id"])
    row = settle(shared, row["id"])
    assert row["state"] == "done" and row["error"] is None
    assert shared.shelf.row(row["steps"][0]["digest"])["made_at"] == made_at, "what is finished is not done again"


@pytest.mark.parametrize("kind", ["crash", "vanish"])
def test_a_worker_that_a_stage_tears_down_is_started_again(desk: Desk, tmp_path: Path, kind: str) -> None:
    """A stage may end its process, or its thread so that nobody can write down how it ended."""
    mended = tmp_path / "mended"
    id = desk.submit(Order((Step("trip", "trip", {"kind": kind, "until": str(mended)}),)))["id"]
    row = settle(desk, id, lambda row: desk.hand.deaths >= 2 and row["state"] == "running")
    assert row["error"]["code"] == "worker_ended" and "2 times in a row" in row["error"]["message"]
    mended.touch()
    row = settle(desk, id)
    assert row["state"] == "done" and row["error"] is None


def test_a_corrupt_artifact_fails_the_run_and_is_made_anew_by_resuming(shared: Desk) -> None:
    row = settle(shared, shared.submit(chain(4))["id"])
    digest = row["steps"][0]["digest"]
    file = shared.shelf.folder(digest) / "numbers.txt"
    sound = file.read_bytes()
    file.write_bytes(sound[:-2])
    with pytest.raises(Corrupt, match=r"numbers.txt of the artifact .* was altered"):
        verify(file.parent)
    failed = settle(shared, shared.submit(Order((Step("again", "add", {}, {"numbers": digest}),)))["id"])
    assert failed["state"] == "failed" and failed["error"]["code"] == "artifact_corrupt"
    file.write_bytes(sound)
    shared.resume(failed["id"])
    assert settle(shared, failed["id"])["steps"][0]["digest"] == row["steps"][1]["digest"]


def test_resuming_makes_a_corrupt_step_of_its_own_anew(shared: Desk, tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    trip = Step("trip", "trip", {"until": str(mended)}, {"numbers": "drawn"})
    row = settle(shared, shared.submit(Order((chain(8).steps[0], trip)))["id"])
    digest = row["steps"][0]["digest"]
    (shared.shelf.folder(digest) / "numbers.txt").unlink()
    mended.touch()
    shared.resume(row["id"])
    row = settle(shared, row["id"])
    assert row["state"] == "done" and row["steps"][0]["digest"] == digest
    verify(shared.shelf.folder(digest))


def test_runs_outlive_desk_and_worker(tmp_path: Path) -> None:
    first = open_desk(tmp_path)
    id = first.submit(chain(30, 0.05))["id"]
    settle(first, id, lambda row: row["steps"][0]["done"] > 2)
    first.close()
    second = open_desk(tmp_path)
    assert second.row(id)["state"] == "running"
    assert settle(second, id)["state"] == "done"
    second.close()


def test_one_worker_serves_all_desks_of_a_folder(desk: Desk, tmp_path: Path) -> None:
    other = open_desk(tmp_path)
    id = desk.submit(chain(30, 0.05))["id"]
    settle(desk, id, lambda row: row["state"] == "running")
    assert other.tend() and other.hand.pid is None
    desk.close()
    assert settle(other, id)["state"] == "done", "the work of a desk that left is taken over"
    other.close()


BAD: list[tuple[Any, type[AtollError], str, str]] = [
    (Order(()), InvalidRequest, "1 to 32 steps", "steps"),
    (Order((Step("a", "fly"),)), NotFound, "there is no stage 'fly'; there are: draw, add", "steps[0].stage"),
    (Order((Step("../a", "draw"),)), InvalidRequest, "must be unique", "steps[0].name"),
    (Order((Step("a", "draw"), Step("a", "draw"))), InvalidRequest, "must be unique", "steps[1].name"),
    (Order((Step("a", "draw", {"cuont": 3}),)), InvalidRequest, "no setting 'cuont'", "steps[0].config.cuont"),
    (Order((Step("a", "draw", {"count": "x"}),)), InvalidRequest, "valid integer", "steps[0].config.count"),
    (Order((Step("a", "draw", {"count": 0}),)), InvalidRequest, "at least 1, not 0", "steps[0].config.count"),
    (Order((Step("a", "add"),)), InvalidRequest, "needs the input 'numbers'", "steps[0].inputs"),
    (Order((Step("a", "add", {}, {"numbers": "b"}),)), InvalidRequest, "earlier step", "steps[0].inputs.numbers"),
    (Order((Step("a", "draw", {}, {"x": "b"}),)), InvalidRequest, "takes nothing", "steps[0].inputs"),
    (Order((Step("a", "add", {}, {"numbers": "0" * 64}),)), NotFound, "no artifact", "digest"),
]


@pytest.mark.parametrize(("order", "kind", "message", "param"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_order_is_refused_by_name(desk: Desk, order: Order, kind: Any, message: str, param: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        desk.submit(order)
    assert caught.value.param == param
    assert desk.rows() == []


def test_the_queue_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MAX_UNFINISHED", 2)
    for _ in range(2):
        desk.submit(chain(1))
    with pytest.raises(Overloaded, match="2 runs are waiting"):
        desk.submit(chain(1))
    assert [row["state"] for row in desk.rows()] == ["queued", "queued"]


def test_only_listed_files_of_an_artifact_are_given(shared: Desk, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    digest = settle(shared, shared.submit(chain(1))["id"])["steps"][0]["digest"]
    for name in ("../../../secret", "/etc/passwd", "artifact.json", "nested", "", "./numbers.txt"):
        with pytest.raises(NotFound):
            shared.shelf.file(digest, name)
    for name in ("../runs/application", "x", "", "g" * 64):
        with pytest.raises(NotFound):
            shared.shelf.folder(name)


def test_an_altered_label_is_told(shared: Desk) -> None:
    row = settle(shared, shared.submit(chain(9))["id"])
    path = shared.shelf.folder(row["steps"][0]["digest"]) / "artifact.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "files": {"other": "0"}}))
    assert shared.row(row["id"])["steps"][0]["state"] == "corrupt"
    with pytest.raises(Corrupt, match="was altered"):
        shared.shelf.get(told["digest"])


def test_stages_tell_their_config_as_json_schema(shared: Desk) -> None:
    (told,) = [s for s in shared.stages() if s["name"] == "draw"]
    assert told["config"]["properties"]["count"] == {"default": 20, "title": "Count", "type": "integer"}
    assert told["makes"] == "dataset" and told["takes"] == []


def test_what_never_was_is_not_found(shared: Desk) -> None:
    for ask in (shared.row, shared.cancel, shared.resume):
        with pytest.raises(NotFound, match="no run 'run_x'"):
            ask("run_x")


def test_runs_kept_in_postgresql(tmp_path: Path, postgres_server: Any) -> None:
    """Two data folders share a database, and each does its own runs only."""
    url = postgres_server.new_database()
    first, second = open_desk(tmp_path / "a", url=url), open_desk(tmp_path / "b", url=url)
    ids = [desk.submit(chain(20, 0.05))["id"] for desk in (first, second)]
    settle(first, ids[0], lambda row: row["steps"][0]["done"] > 3)
    assert first.hand.pid is not None
    os.kill(first.hand.pid, signal.SIGKILL)
    rows = [settle(desk, id) for desk, id in zip((first, second), ids, strict=True)]
    assert [row["state"] for row in rows] == ["done", "done"] and digests(rows[0]) == digests(rows[1])
    assert [[row["id"] for row in desk.rows()] for desk in (first, second)] == [[ids[0]], [ids[1]]]
    assert not (tmp_path / "a" / "jobs.db").exists()
    first.close()
    second.close()
