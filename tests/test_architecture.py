"""The rules of the house, enforced (docs/map.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "atoll"
WIRING = {"app", "cli", "settings", "__init__", "__main__", "terminal", "client"}
CORE_MAY_NOT = {
    "asyncio", "time", "random", "logging", "os", "socket", "threading", "subprocess", "httpx", "sqlalchemy",
    "starlette", "uvicorn", "pydantic", "orjson", "torch",
}  # fmt: skip
HEAVY = (
    "torch", "mujoco", "gymnasium", "ray", "transformers", "onnxruntime", "numpy", "sqlalchemy", "starlette",
    "pydantic",
)  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()} - WIRING


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("atoll.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path: Path) -> None:
    here, reached = room(path), ours(path)
    if here in ROOMS:
        assert reached & ROOMS <= {here, "core"}, f"{path} imports a sibling room"
        assert not reached & (WIRING - {"__init__"}), f"{path} imports the wiring"
    if here != "cli":
        assert "app" not in reached, f"{path}: only cli.py imports app.py"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_is_pure(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & CORE_MAY_NOT


def test_no_file_or_function_is_too_long() -> None:
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 500, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_only_settings_reads_the_environment() -> None:
    for path in FILES:
        if path.name != "settings.py":
            text = path.read_text()
            assert "os.getenv" not in text, path
            children = {"child.py", "__main__.py", "process.py", "server.py", "app.py"}
            assert "os.environ" not in text or path.name in children, path


def test_import_is_light_and_touches_nothing() -> None:
    code = f"import sys, atoll, atoll.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_what_everyone_installs_is_light() -> None:
    lock = (PACKAGE.parent / "requirements" / "base.lock").read_text()
    names = {name.lower() for name in re.findall(r"^([A-Za-z0-9._-]+)(?=\[|==)", lock, re.MULTILINE)}
    assert "xllamacpp" in names
    assert [name for name in sorted(names) if re.fullmatch(r"torch|mujoco|ray|nvidia-.*", name)] == []
