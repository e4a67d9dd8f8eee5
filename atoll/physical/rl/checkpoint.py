"""A learner's whole state in one file that appears at once: numpy's npz, with plain values as JSON; never pickle."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.policy import write

PLAIN = "plain"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """`state` is nested mappings with strings as keys, of arrays and of what JSON can say."""
    arrays: dict[str, np.ndarray] = {}
    plain = _take(state, "", arrays)
    sink = io.BytesIO()
    np.savez(sink, **arrays, **{PLAIN: np.frombuffer(json.dumps(plain).encode(), np.uint8)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, sink.getvalue())


def load(path: Path) -> dict[str, Any] | None:
    """The state saved there, or None where there is none. Raises InvalidRequest where the file is damaged."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
            state = json.loads(file[PLAIN].tobytes())
            for name in file.files:
                if name != PLAIN:
                    *folders, leaf = name.split("/")
                    at = state
                    for folder in folders:
                        at = at[folder]
                    at[leaf] = file[name]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"the checkpoint '{path.name}' is damaged: {error}; remove it to begin anew") from None
    return state


def _take(state: Mapping[str, Any], prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Moves arrays into `arrays`, by path; returns the rest."""
    rest: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            arrays[prefix + name] = value
        else:
            rest[name] = _take(value, f"{prefix}{name}/", arrays) if isinstance(value, Mapping) else value
    return rest
