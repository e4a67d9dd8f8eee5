"""llama.cpp's wheel wants the system's OpenMP library, which small images lack; ctranslate2's wheel carries one."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

NAME = "libgomp.so.1"


def missing() -> bool:
    """True where the dynamic loader finds no library of that name."""
    try:
        ctypes.CDLL(NAME)
    except OSError:
        return True
    return False


def carried() -> Path | None:
    """The library inside the installed ctranslate2, which has a name of its own there."""
    spec = importlib.util.find_spec("ctranslate2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parents[1].glob("ctranslate2.libs/libgomp-*.so.*"))), None)


def search_path(folder: Path, inherited: str, missing: Callable[[], bool] = missing) -> dict[str, str]:
    """What the environment of a llama.cpp process needs: nothing where the system has the library, else a search path
    that begins with `folder`, in which the carried one has the wanted name."""
    if not missing() or (library := carried()) is None:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        (Path(draft) / NAME).symlink_to(library)
        (Path(draft) / NAME).replace(folder / NAME)
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder.absolute()), inherited)))}
