"""A learner's whole state in one file that appears at once: numpy's npz, with plain values as JSON; never pickle. The
SHA-256 of all that is its end."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.policy import write

PLAIN = "plain"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """`state` is nested mappings with strings as keys, and lists, of arrays and of what JSON can say."""
    arrays: list[np.ndarray] = []
    places: list[list[str | int]] = []
    plain = json.dumps({"state": _take(state, [], arrays, places), "places": places})
    sink = io.BytesIO()
    named = {str(i): array for i, array in enumerate(arrays)}
    np.savez(sink, **named, **{PLAIN: np.frombuffer(plain.encode(), np.uint8)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, sealed(sink.getvalue()))


def sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def load(path: Path) -> dict[str, Any] | None:
    """The state saved there, or None where there is none. Raises InvalidRequest where the file is damaged."""
    if not path.exists():
        return None
    try:
        data = (told := path.read_bytes())[: -hashlib.sha256().digest_size]
        if sealed(data) != told:
            raise ValueError("its SHA-256 is not the one that it was written with")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            plain = json.loads(file[PLAIN].tobytes())
            for i, (*folders, leaf) in enumerate(plain["places"]):
                reduce(getitem, folders, plain["state"])[leaf] = file[str(i)]
    except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"the checkpoint '{path.name}' is damaged: {error}; remove it to begin anew") from None
    return plain["state"]


def _take(value: Any, place: list[str | int], arrays: list[np.ndarray], places: list[list[str | int]]) -> Any:
    """Moves arrays into `arrays`, with their `places`; returns the rest."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        places.append(place)
        return None
    if isinstance(value, Mapping):
        return {name: _take(inner, [*place, name], arrays, places) for name, inner in value.items()}
    if isinstance(value, list):
        return [_take(inner, [*place, i], arrays, places) for i, inner in enumerate(value)]
    return value
