"""The files of a model repository, and which of them make the model that is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from atoll.core.errors import InvalidRequest

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+ -]{0,199}")
SHA256 = re.compile(r"[0-9a-f]{64}")
PART = re.compile(r"-\d{5}-of-(\d{5})(?=\.gguf$)")
PREFERRED = ("Q4_K_M", "Q8_0", "Q5_K_M", "Q6_K", "Q4_K_S", "Q4_0", "Q4_1", "Q5_0", "Q3_K_M", "BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its path there, bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository at one commit; `files` are its GGUF files."""

    name: str
    commit: str
    licence: str
    files: tuple[HubFile, ...]


def choose(repo: Repo, wanted: str = "") -> tuple[HubFile, ...]:
    """The files of one model: `wanted` is a path, a file name or a quantisation; the best known one if empty.

    Raises InvalidRequest listing the choices.
    """
    models = _models(repo.files)
    found = [m for m in models if not wanted or _answers_to(m[0], wanted)]
    if not wanted and len(found) > 1:
        ranked = [[m for m in found if _has_tag(m[0].name, tag)] for tag in PREFERRED]
        found = next((group for group in ranked if group), found)
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{m[0].path} ({megabytes(sum(f.size for f in m))})" for m in models[:40]) or "no GGUF file"
    why = f"'{wanted}' fits {len(found)} of the files" if wanted else f"{len(found)} files could be meant"
    raise InvalidRequest(f"{why} in {repo.name}; name one as hf:{repo.name}:FILE. There are: {listed}", param="source")


def _models(files: Sequence[HubFile]) -> list[tuple[HubFile, ...]]:
    """Files that belong together: the parts of a split model, each other file alone. Incomplete sets are left out."""
    sets: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda f: f.path):
        if not file.name.lower().startswith(("mmproj", "imatrix")):
            sets.setdefault(PART.sub("-*", file.path), []).append(file)
    whole = []
    for group in sets.values():
        match = PART.search(group[0].path)
        if not match or len(group) == int(match[1]):
            whole.append(tuple(group))
    return whole


def _answers_to(file: HubFile, wanted: str) -> bool:
    return wanted in {file.path, file.name} or _has_tag(file.name, wanted)


def _has_tag(name: str, tag: str) -> bool:
    stem = PART.sub("", name).removesuffix(".gguf")
    return re.search(rf"(^|[-._]){re.escape(tag)}$", stem, re.IGNORECASE) is not None


def gguf_files(rows: Any) -> list[HubFile]:
    """Only files with a safe name and a digest: without one nothing could be checked."""
    files = []
    for row in rows if isinstance(rows, list) else ():
        path, lfs = member(row, "path", str), member(row, "lfs", dict)
        digest, size = member(lfs, "oid", str), member(lfs, "size", int)
        safe = path and path.endswith(".gguf") and all(NAME.fullmatch(p) for p in path.split("/"))
        if safe and digest and SHA256.fullmatch(digest) and size and size > 0:
            files.append(HubFile(path, size, digest))
    return files


def member(table: Any, name: str, kind: type[T]) -> T | None:
    """A key of a JSON object from outside, None unless its value has the kind expected."""
    value = table.get(name) if isinstance(table, dict) else None
    return value if isinstance(value, kind) else None


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
