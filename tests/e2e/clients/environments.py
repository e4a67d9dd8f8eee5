"""Environments of their own for clients that we did not write: built once per lock file, then reused."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2] / ".venvs"
INSTALL_SECONDS = 900


def python_environment(name: str, *, beside: bool = False) -> Path:
    """The `bin` folder of a virtual environment with what `<name>.lock` pins. `beside`: the packages of the tests are
    there as well, and stand back behind those; nothing else is installed."""
    lock = HERE / f"{name}.lock"

    def install(home: Path) -> None:
        _run(sys.executable, "-m", "venv", str(home))
        pip = [str(home / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
        alone = ["--no-deps"] if beside else []
        _run(*pip, "install", "-q", "--no-compile", "--require-hashes", *alone, "-r", str(lock))
        if beside:
            version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            (home / "lib" / version / "site-packages" / "beside.pth").write_text(sysconfig.get_path("purelib"))

    return _built(f"{name}-py{sys.version_info[0]}{sys.version_info[1]}", [lock], install) / "bin"


def node_environment() -> Path:
    """A folder with the tour and its installed packages."""
    parts = [HERE / "node" / part for part in ("package.json", "package-lock.json", "tour.mjs")]

    def install(home: Path) -> None:
        home.mkdir()
        for part in parts:
            shutil.copy(part, home)
        _run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=home)

    return _built("node", parts, install)


def _built(name: str, pins: list[Path], install: Callable[[Path], None]) -> Path:
    digest = hashlib.sha256(b"".join(pin.read_bytes() for pin in pins)).hexdigest()
    home, mark = ROOT / name, ROOT / f"{name}.digest"
    ROOT.mkdir(exist_ok=True)
    with (ROOT / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (mark.exists() and mark.read_text() == digest):
            mark.unlink(missing_ok=True)
            shutil.rmtree(home, ignore_errors=True)
            install(home)
            mark.write_text(digest)
    return home


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=dict(os.environ), text=True, capture_output=True, timeout=INSTALL_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
