"""What desk and worker agree on about DBOS: database, application, names, and JSON instead of pickles."""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.core.errors import AtollError, NotInstalled, from_wire, to_wire
from atoll.core.runs import Cancelled

if TYPE_CHECKING:
    from dbos import DBOSConfig, Serializer

WORKFLOW = "run"
RECOVERIES = 50


@dataclass(frozen=True, slots=True)
class Home:
    """Where runs are kept: `data` is the folder, `url` the database (SQLite in the folder if empty). `stages` is the
    "module:function" that gives a stage by name. `grace` are the seconds that a cancelled step has to stop by itself,
    `idle` those after which a worker without work ends, `lost` those after which one begins anew that could not write
    down how a run ended."""

    data: Path
    url: str = ""
    stages: str = ""
    grace: float = 10.0
    idle: float = 30.0
    lost: float = 15.0

    @property
    def runs(self) -> Path:
        return self.data / "runs"

    @property
    def database(self) -> str:
        return self.url or f"sqlite:///{(self.data / 'jobs.db').absolute()}"

    def application(self) -> str:
        """The name under which this data folder's runs are kept, so that several may share one database: of DBOS's
        application, its version (which does not change, so that every worker takes up every run) and its queue."""
        path = self.runs / "application"
        if not path.exists():
            self.runs.mkdir(parents=True, exist_ok=True)
            made = path.with_name(f".application.{secrets.token_hex(4)}")
            made.write_text(f"atoll-{secrets.token_hex(6)}")
            try:
                path.hardlink_to(made)
            except FileExistsError:
                pass
            finally:
                made.unlink()
        return path.read_text()


def require() -> Any:
    """The package `dbos`. Raises NotInstalled."""
    try:
        import dbos
    except ModuleNotFoundError:
        raise NotInstalled("runs need the extra 'physical', which is not installed here; run: make physical") from None
    logging.getLogger("dbos").setLevel(logging.ERROR)
    return dbos


def config(home: Home) -> DBOSConfig:
    name = home.application()
    return {
        "name": name,
        "executor_id": name,
        "application_version": name,
        "system_database_url": home.database,
        "serializer": serializer(),
        "log_level": "ERROR",
    }


def serializer() -> Serializer:
    """JSON: what the database holds can be read by anyone, and runs nothing when it is. Errors keep their message."""
    from dbos import Serializer

    class Json(Serializer):
        def serialize(self, data: Any) -> str:
            return json.dumps(data, default=told)

        def deserialize(self, serialized_data: str) -> Any:
            value = json.loads(serialized_data)
            return from_wire(value["$error"]) if isinstance(value, dict) and "$error" in value else value

        def name(self) -> str:
            return "json"

    return Json()


def told(error: object) -> dict[str, Any]:
    """An error as JSON. One that nobody raised on purpose tells its type, and where it comes from."""
    if isinstance(error, AtollError):
        return {"$error": to_wire(error)}
    if isinstance(error, Cancelled):
        return {"$error": to_wire(AtollError(str(error), code="cancelled"))}
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return {"$error": to_wire(AtollError(f"{error.strerror}{where}", code="system_error"))}
    if not isinstance(error, BaseException):
        raise TypeError(f"{type(error).__name__} is not JSON")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return {"$error": to_wire(AtollError(f"{type(error).__name__}: {error}{where}", code="stage_failed"))}
