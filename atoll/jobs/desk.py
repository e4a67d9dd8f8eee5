"""Where runs are ordered and asked about. What was ordered is in the database when `submit` returns."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atoll.core.errors import AtollError, Conflict, NotFound, Overloaded, SetupError, to_wire
from atoll.core.runs import DIGEST, UNFINISHED, Order, Stage, State, check_order
from atoll.jobs import durable
from atoll.jobs.artifacts import LABEL, Corrupt, Shelf, label
from atoll.jobs.durable import Home
from atoll.jobs.figures import latest, read
from atoll.jobs.process import Hand
from atoll.jobs.steps import LoadStage, configure, from_json, renderer, schema, seeded, to_json

MAX_UNFINISHED = 100
STATES: dict[str, State] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
GAVE_UP = f"the worker died {durable.RECOVERIES} times over this run; see worker.log in the folder of runs"

Row = dict[str, Any]
Complete = Callable[[Order], Order]


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a run was followed: `offsets` into its figures by step, and the `row` as last told."""

    offsets: Mapping[str, int] = field(default_factory=dict)
    row: Row | None = None

    @property
    def ended(self) -> bool:
        return self.row is not None and self.row["state"] not in UNFINISHED


def _as_it_is(order: Order) -> Order:
    return order


class Desk:
    """`stages` maps names to what `load` gives; `complete` adds to an order what it leaves open. Methods block on the
    database and the disk; `board` is for async."""

    def __init__(self, home: Home, hand: Hand, stages: Sequence[str], load: LoadStage, complete: Complete = _as_it_is):
        self.home, self.hand, self.load, self.complete = home, hand, load, complete
        self.names = tuple(stages)
        self.shelf = Shelf(home.data)
        self._opened: Any = None

    def stages(self) -> list[Row]:
        """Every stage with the JSON schema of its config. Raises NotInstalled."""
        found = [self._stage(name) for name in self.names]
        return [
            {"name": s.name, "about": s.about, "makes": s.makes, "takes": list(s.takes), "config": schema(s)}
            for s in found
        ]

    def submit(self, order: Order) -> Row:
        """Check the order and queue it. Raises InvalidRequest, NotFound (an artifact), Overloaded or NotInstalled."""
        order = self.complete(order)
        stages = {step.stage: self._stage(step.stage, f"steps[{i}].stage") for i, step in enumerate(order.steps)}
        check_order(order, stages)
        for i, step in enumerate(order.steps):
            self._check_step(stages[step.stage], f"steps[{i}]", step, order.seed)
        if len(self._statuses(status=["ENQUEUED", "PENDING"])) >= MAX_UNFINISHED:
            raise Overloaded(f"{MAX_UNFINISHED} runs are waiting already", retry_after=60)
        id = f"run_{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}_{secrets.token_hex(3)}"
        name = self.home.application()
        options = {"workflow_name": durable.WORKFLOW, "queue_name": name, "app_version": name}
        with _database():
            self._client.enqueue({**options, "workflow_id": id, "workflow_id_reuse_policy": "reject"}, to_json(order))
        return self.row(id)

    def rows(self, limit: int = 100) -> list[Row]:
        """Runs, newest first."""
        return [self._row(status) for status in self._statuses(sort_desc=True, limit=limit)]

    def row(self, id: str) -> Row:
        """Raises NotFound."""
        for status in self._statuses(workflow_ids=[id]):
            return self._row(status)
        raise NotFound(f"there is no run '{id}'", param="id", code="run_not_found")

    def cancel(self, id: str) -> Row:
        """Raises NotFound, or Conflict where it has ended."""
        if self.row(id)["state"] not in UNFINISHED:
            raise Conflict(f"run '{id}' has ended: it is {self.row(id)['state']}")
        with _database():
            self._client.cancel_workflow(id)
        return self.row(id)

    def resume(self, id: str) -> Row:
        """Go on with a run that failed or was cancelled; finished steps are checked, not done again. Raises NotFound,
        or Conflict where it goes on already or is done."""
        state = self.row(id)["state"]
        if state not in {"failed", "cancelled"}:
            raise Conflict(f"run '{id}' cannot be resumed: it is {state}")
        with _database():
            self._client.rewind_workflow(id, queue_name=self.home.application())
        return self.row(id)

    def news(self, id: str, cursor: Cursor) -> tuple[list[tuple[str, Any]], Cursor]:
        """What happened to a run since `cursor`, as (name, data), and the cursor to ask with next. Raises NotFound."""
        row, offsets, lines = self.row(id), dict(cursor.offsets), []
        for step in row["steps"]:
            name = step["name"]
            found, offsets[name] = read(self._path(id, f"{name}.jsonl"), offsets.get(name, 0))
            lines += [{"step": name, **line} for line in found]
        told: list[tuple[str, Any]] = [] if row == cursor.row else [("run", row)]
        return told + ([("figures", lines)] if lines else []), Cursor(offsets, row)

    def artifact(self, digest: str) -> Row:
        """An artifact with its files, and as `lineage` all that it was made from. Raises NotFound."""
        lineage = self.shelf.lineage(digest)
        return {**self.shelf.row(digest), "files": dict(self.shelf.get(digest).files), "lineage": lineage}

    def view(self, id: str, step: str) -> Path | None:
        """The latest picture of a step under way; None where it shows none. Raises NotFound."""
        if all(s["name"] != step for s in self.row(id)["steps"]):
            raise NotFound(f"run '{id}' has no step '{step}'", param="step")
        path = self._path(id, step) / ".work" / "view.jpg"
        return path if path.exists() else None

    def tend(self) -> bool:
        """See to it that someone works if there is work; whether there is. To be called about once a second."""
        left = bool(self._statuses(status=["ENQUEUED", "PENDING"], limit=1))
        self.hand.tend(left)
        return left

    def close(self) -> None:
        self.hand.stop()
        if self._opened is not None:
            self._opened.destroy()

    @property
    def _client(self) -> Any:
        if self._opened is None:
            dbos = durable.require()
            self.home.runs.mkdir(parents=True, exist_ok=True)
            dbos.DBOS.migrate(self.home.database)
            self._opened = dbos.DBOSClient(
                system_database_url=self.home.database,
                serializer=durable.serializer(),
                application_name=self.home.application(),
            )
        return self._opened

    def _statuses(self, **which: Any) -> list[Any]:
        """Statuses of this folder's runs. The database is opened for the first time here."""
        with _database():
            application = self.home.application()
            return self._client.list_workflows(name=durable.WORKFLOW, application_name=application, **which)

    def _stage(self, name: str, param: str = "stage") -> Stage:
        if name not in self.names:
            raise NotFound(f"there is no stage '{name}'; there are: {', '.join(self.names)}", param=param)
        return self.load(name)

    def _check_step(self, stage: Stage, where: str, step: Any, seed: int) -> None:
        try:
            configure(stage, seeded(stage, step.config, seed))
        except AtollError as error:
            error.param = f"{where}.config" + (f".{error.param}" if error.param else "")
            raise
        for source in step.inputs.values():
            if DIGEST.fullmatch(source):
                self.shelf.folder(source)

    def _row(self, status: Any) -> Row:
        order, state = from_json(status.input["args"][0]), STATES[status.status]
        steps = [self._step_row(status.workflow_id, step) for step in order.steps]
        under_way = next((step for step in steps if step["state"] == "waiting"), None)
        if under_way and state in {"running", "failed"}:
            under_way["state"] = state
        error = AtollError(GAVE_UP) if status.status.startswith("MAX") else status.error
        if state == "running":
            error = AtollError(self.hand.trouble, code="worker_ended") if self.hand.trouble else None
        told = None if error is None else {k: v for k, v in to_wire(error).items() if k in {"message", "code", "param"}}
        return {
            "id": status.workflow_id,
            "name": order.name,
            "state": state,
            "seed": order.seed,
            "ray": order.ray,
            "created_at": (status.created_at or 0) / 1000,
            "ended_at": status.completed_at / 1000 if status.completed_at else None,
            "error": told,
            "steps": steps,
        }

    def _step_row(self, id: str, step: Any) -> Row:
        folder = self._path(id, step.name)
        row = {**asdict(step), "state": "waiting", "kind": None, "digest": None, "renderer": renderer(folder)}
        if (folder / LABEL).exists():
            try:
                artifact = label(folder)
                row |= {"state": "done", "kind": artifact.kind, "digest": artifact.digest}
                row["renderer"] = artifact.versions.get("renderer")
            except (Corrupt, NotFound):
                row["state"] = "corrupt"
        last = latest(folder.with_suffix(".jsonl")) or {"at": None, "done": 0.0, "total": 0.0, "figures": {}}
        return row | {"at": last["at"], "done": last["done"], "total": last["total"], "figures": last["figures"]}

    def _path(self, id: str, name: str) -> Path:
        return self.home.runs / id / name


@contextmanager
def _database() -> Iterator[None]:
    """Raises NotInstalled, or SetupError where the database of runs does not do its work."""
    durable.require()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        raise SetupError(f"the database of runs cannot be used: {str(error).splitlines()[0]}") from error
