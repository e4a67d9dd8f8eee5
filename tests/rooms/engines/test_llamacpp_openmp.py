"""llama.cpp finds an OpenMP library on a machine that has none of its own."""

import os
import subprocess
import sys
from pathlib import Path

from atoll.engines.llamacpp import openmp

LOADS = "import ctypes; print(ctypes.CDLL('libgomp.so.1').GOMP_parallel)"


def test_the_carried_library_is_found_under_the_wanted_name(tmp_path: Path) -> None:
    told = openmp.search_path(tmp_path / "lib", "/else/where", lambda: True)
    assert told == {"LD_LIBRARY_PATH": f"{tmp_path / 'lib'}{os.pathsep}/else/where"}
    assert [path.name for path in (tmp_path / "lib").iterdir()] == ["libgomp.so.1"]
    assert (tmp_path / "lib" / "libgomp.so.1").resolve() == openmp.carried()
    maps = f"{LOADS}; print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", maps], env=told, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and str(openmp.carried()) in done.stdout, done.stderr


def test_llamacpp_loads_with_it(tmp_path: Path) -> None:
    told = openmp.search_path(tmp_path, "", lambda: True)
    maps = "import xllamacpp; print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", maps], env=told, capture_output=True, text=True, timeout=60)
    loaded = {line.split()[-1] for line in done.stdout.splitlines() if "libgomp" in line}
    assert loaded == {str(openmp.carried())}, done.stderr


def test_a_link_of_another_installation_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "libgomp.so.1").symlink_to(tmp_path / "gone")
    assert openmp.search_path(tmp_path, "", lambda: True) == {"LD_LIBRARY_PATH": str(tmp_path)}
    assert (tmp_path / "libgomp.so.1").resolve() == openmp.carried()


def test_the_systems_own_library_is_left_alone(tmp_path: Path) -> None:
    assert openmp.search_path(tmp_path / "lib", "", lambda: False) == {}
    assert not (tmp_path / "lib").exists()
