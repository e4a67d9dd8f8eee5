"""Finished folders, by digest. `artifact.json` in a folder says what it is; that it is there means it is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from atoll.core.errors import AtollError, InvalidRequest, NotFound
from atoll.core.runs import DIGEST, Artifact, digest_of

LABEL = "artifact.json"
WORK = ".work"
BLOCK = 1 << 20


class Corrupt(AtollError):
    """An artifact is not what it was when it was made."""

    code = "artifact_corrupt"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The artifacts below the folder `data`."""

    data: Path

    def seal(self, folder: Path, made: Artifact) -> Artifact:
        """Finish `folder`: `made` with its files and digest filled in. Raises InvalidRequest for a link in it."""
        shutil.rmtree(folder / WORK, ignore_errors=True)
        for cut_short in folder.glob(f".{LABEL}.*"):
            cut_short.unlink()
        files = {str(path.relative_to(folder)): _sha256(path) for path in _files(folder)}
        sealed = replace(made, files=files, digest=digest_of(files))
        write(folder / LABEL, asdict(sealed))
        self.index(folder, sealed)
        return sealed

    def index(self, folder: Path, artifact: Artifact) -> None:
        """Make `artifact`, which lies in `folder`, known by its digest."""
        where = self.data / "artifacts" / f"{artifact.digest}.json"
        told = {"path": str(folder.relative_to(self.data))}
        with contextlib.suppress(FileNotFoundError):
            if _read(where) == told:
                return
        where.parent.mkdir(exist_ok=True)
        write(where, told)

    def folder(self, digest: str) -> Path:
        """Where the artifact lies. Raises NotFound."""
        if DIGEST.fullmatch(digest):
            with contextlib.suppress(FileNotFoundError):
                folder = self.data / _read(self.data / "artifacts" / f"{digest}.json")["path"]
                if (folder / LABEL).exists():
                    return folder
        raise NotFound(f"there is no artifact '{digest}' here", param="digest", code="artifact_not_found")

    def get(self, digest: str) -> Artifact:
        """Raises NotFound."""
        return label(self.folder(digest))

    def rows(self, limit: int = 1000) -> Sequence[Mapping[str, Any]]:
        """What the artifacts are, newest first, without their files."""
        places = [(e.stat().st_mtime, e.name.removesuffix(".json")) for e in _entries(self.data / "artifacts")]
        rows = []
        for made_at, digest in sorted(places, reverse=True)[:limit]:
            with contextlib.suppress(NotFound):
                rows.append(self.row(digest, made_at))
        return rows

    def row(self, digest: str, made_at: float | None = None) -> dict[str, Any]:
        """An artifact with `bytes` (whole size), `path` below the data folder and `made_at`. Raises NotFound."""
        folder = self.folder(digest)
        artifact = label(folder)
        sizes = {name: (folder / name).stat().st_size for name in artifact.files if (folder / name).exists()}
        row = {**asdict(artifact), "files": len(artifact.files), "bytes": sum(sizes.values())}
        made_at = (folder / LABEL).stat().st_mtime if made_at is None else made_at
        return {**row, "made_at": made_at, "path": str(folder.relative_to(self.data))}

    def lineage(self, digest: str) -> list[dict[str, Any]]:
        """The artifact and all it was made from, each with its parents; one that is gone has no stage."""
        found: dict[str, dict[str, Any]] = {}
        waiting = [digest]
        while waiting:
            if (name := waiting.pop(0)) in found:
                continue
            found[name] = {"digest": name, "kind": None, "stage": None, "parents": {}}
            with contextlib.suppress(NotFound):
                artifact = self.get(name)
                found[name] |= {"kind": artifact.kind, "stage": artifact.stage, "parents": dict(artifact.parents)}
                waiting += artifact.parents.values()
        return list(found.values())

    def file(self, digest: str, name: str) -> Path:
        """A file that the artifact's label lists; no other exists. Raises NotFound, or Corrupt where it is gone."""
        folder = self.folder(digest)
        if name not in label(folder).files:
            raise NotFound(f"artifact '{digest[:12]}' has no file '{name}'", param="path")
        if not (folder / name).is_file():
            raise Corrupt(f"{name} of the artifact {digest[:12]} is missing in {folder}")
        return folder / name


def label(folder: Path) -> Artifact:
    """What `folder` says that it is. Raises NotFound where it is not finished, Corrupt where that cannot be read."""
    try:
        told = _read(folder / LABEL)
        artifact = Artifact(**told)
    except FileNotFoundError:
        raise NotFound(f"{folder.name} is not finished", code="artifact_not_found") from None
    except (ValueError, TypeError) as error:
        raise Corrupt(f"{folder / LABEL} cannot be read: {error}; delete it, and the step is done again") from None
    if digest_of(artifact.files) != artifact.digest:
        raise Corrupt(f"{folder / LABEL} was altered: its files do not make its digest; delete it, and resume the run")
    return artifact


def verify(folder: Path) -> Artifact:
    """The artifact in `folder`, every byte of which was read. Raises NotFound or Corrupt."""
    artifact = label(folder)
    for name, expected in artifact.files.items():
        try:
            found = _sha256(folder / name)
        except FileNotFoundError:
            found = "missing"
        if found != expected:
            state = "is missing" if found == "missing" else "was altered"
            raise Corrupt(f"{name} of the artifact {artifact.digest[:12]} ({artifact.kind}) {state} in {folder}")
    return artifact


def discard(folder: Path) -> None:
    """Make a finished folder unfinished and empty."""
    (folder / LABEL).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, value: Any) -> None:
    """JSON that is there whole, or not at all."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with made.open("w") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        made.rename(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return [entry for entry in os.scandir(folder) if entry.name.endswith(".json") and entry.name[0] != "."]
    except FileNotFoundError:
        return []


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise InvalidRequest(f"{path} is a link: an artifact holds files only")
        if path.is_file() and path != folder / LABEL:
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
