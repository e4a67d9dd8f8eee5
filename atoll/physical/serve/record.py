"""What is served, on disk: `<root>/<name>/` has `service.json` (what is promoted, what was before, whether it is
stopped), `versions/<policy>-<report>/policy` and `/report` (by their digests), and `audit.jsonl`.

A version is admitted with the report of the gate that it passed; both are copied, and checked again whenever loaded.
What is admitted stays as it is: the same policy with another report lies beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll.core.errors import AtollError, InvalidRequest, NotFound, SetupError
from atoll.core.runs import digest_of
from atoll.core.session import Latch
from atoll.physical.serve.passed import check_compared, check_floor, check_gate

ROBOT = "robot"
"""What a policy is called where nobody says."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
APART = {".work", "artifact.json"}


@dataclass(frozen=True, slots=True)
class Promotion:
    """Digests of the policy's folder and of the report that it passed with; who promoted it, when."""

    policy: str
    report: str
    by: str
    at: float


@dataclass(frozen=True, slots=True)
class Record:
    """`past` are the promotions that a rollback goes back to, the last first to return."""

    name: str
    promoted: Promotion
    past: tuple[Promotion, ...] = ()
    stop: Latch | None = None


class Records:
    """Every method reads or writes files."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob("*/service.json"))

    def read(self, name: str) -> Record:
        """Raises NotFound, or SetupError where the record cannot be understood."""
        path = self.root / name / "service.json"
        if not NAME.fullmatch(name) or not path.is_file():
            raise NotFound(f"there is no policy '{name}' here", param="policy", code="policy_not_found")
        try:
            told = json.loads(path.read_bytes())
            past = tuple(Promotion(**each) for each in told["past"])
            stop = Latch(**told["stop"]) if told["stop"] else None
            return Record(told["name"], Promotion(**told["promoted"]), past, stop)
        except (ValueError, TypeError, KeyError) as error:
            raise SetupError(f"{path} is damaged: {error}") from None

    def promoted(self, find: Callable[[str], Path], name: str) -> str | None:
        """The digest of what is promoted under `name`, where that is an artifact that `find` knows."""
        try:
            digest = self.read(name).promoted.policy
            return digest if find(digest) else None
        except AtollError:
            return None

    def write(self, record: Record) -> None:
        folder = self.root / record.name
        folder.mkdir(parents=True, exist_ok=True)
        told = {**asdict(record), "stop": record.stop._asdict() if record.stop else None}
        write_whole(folder / "service.json", json.dumps(told, indent=1).encode() + b"\n")

    def folder(self, name: str, policy: str, report: str) -> Path:
        return self.root / name / "versions" / f"{policy}-{report}"

    def admit(self, name: str, policy: Path, report: Path, against: str | None = None) -> tuple[str, str]:
        """Keep a copy of a policy that passed the gate; its digest and that of the report. Raises NotFound,
        InvalidRequest where the report is not a pass of this very policy, or Conflict where it does not compare with
        the version `against`."""
        if not NAME.fullmatch(name):
            raise InvalidRequest("'name' must be lower-case letters, digits, '.', '_' or '-'", param="name")
        version, verdict = fingerprint(policy), fingerprint(report)
        told = check_gate(report, version)
        check_floor(told)
        check_compared(told, against)
        kept = self.folder(name, version, verdict)
        if _holds(kept, version, verdict):
            return version, verdict
        coming = kept.with_name(f"{uuid.uuid4().hex}.part")
        try:
            for source, part in ((policy, "policy"), (report, "report")):
                ignored = shutil.ignore_patterns(*APART)
                shutil.copytree(source, coming / part, ignore=ignored, copy_function=_copy)
            if not _holds(coming, version, verdict):
                raise InvalidRequest("the policy or its report changed while it was copied", param="policy")
            if kept.exists():
                kept.rename(coming.with_suffix(".damaged"))
            coming.rename(kept)
        except OSError as error:
            raise SetupError(f"cannot keep the policy in {kept}: {error.strerror or error}") from None
        finally:
            for left in kept.parent.glob(f"{coming.stem}.*"):
                shutil.rmtree(left, ignore_errors=True)
        return version, verdict

    def checked(self, name: str, promotion: Promotion) -> Path:
        """The folder of an admitted policy. Raises InvalidRequest where it or its report is not what was admitted."""
        folder = self.folder(name, promotion.policy, promotion.report)
        if not _holds(folder, promotion.policy, promotion.report):
            why = f"version {promotion.policy[:12]} of '{name}' cannot be read, or was changed on disk"
            raise InvalidRequest(why, param="policy")
        check_gate(folder / "report", promotion.policy)
        return folder / "policy"

    def tidy(self) -> None:
        """Remove what admissions that were killed have left."""
        for pattern in ("*.part", "*.damaged"):
            for left in self.root.glob(f"*/versions/{pattern}"):
                shutil.rmtree(left, ignore_errors=True)


def _holds(folder: Path, policy: str, report: str) -> bool:
    try:
        return (fingerprint(folder / "policy"), fingerprint(folder / "report")) == (policy, report)
    except (NotFound, InvalidRequest, OSError):
        return False


def _copy(source: str, target: str) -> None:
    """On disk when it returns."""
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def fingerprint(folder: Path) -> str:
    """The digest of an artifact's folder. Raises NotFound where it is empty, InvalidRequest for a link in it."""
    files: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_symlink():
            raise InvalidRequest(f"{inside} is a link; an artifact has none", param="policy")
        if path.is_file() and inside.parts[0] not in APART:
            files[inside.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    if not files:
        raise NotFound(f"there is nothing in {folder}", param="policy")
    return digest_of(files)


def write_whole(path: Path, data: bytes) -> None:
    """All of it or nothing, also when the machine stops. Raises SetupError."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None


def plain(value: Any) -> Any:
    """Dataclasses as JSON, without infinite bounds, which are the defaults."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if not (isinstance(v, float) and abs(v) == float("inf"))}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
