"""What every bench needs: where it ran, environments for peers, pinned processes, and their CPU time and memory."""

import contextlib
import dataclasses
import datetime
import hashlib
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

BENCH = Path(__file__).resolve().parent
REPO = BENCH.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll" / "bench"
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(RuntimeError):
    """A bench cannot go on; the message says why and what to look at."""


def hardware() -> dict:
    """CPU model, cores, memory in GiB, kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * PAGE / 2**30
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
    }


def provenance() -> dict:
    """Hardware, UTC date, commit (with `-dirty` when tracked files differ), Python and the load when it started."""
    git = ["git", "-C", str(REPO), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    return {
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "load_average_at_start": [round(x, 2) for x in os.getloadavg()],
    }


def free_port() -> int:
    """A port that was free a moment ago on 127.0.0.1 (for programs that cannot bind port 0 and say what they got)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(name: str, *, deps: bool = True) -> Path:
    """The folder of a virtual environment with bench/peers/<name>.txt installed, made on first use and then reused.
    Without `deps`, nothing is installed that the file does not name."""
    requirements = BENCH / "peers" / f"{name}.txt"
    folder, stamp = CACHE / name, CACHE / name / "requirements.sha256"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    print(f"installing {name} into {folder} ...", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *([] if deps else ["--no-deps"]), "-r", requirements], check=True, timeout=1200)
    stamp.write_text(digest)
    return folder


def pinned_versions(name: str, wanted: Sequence[str]) -> dict[str, str]:
    """The versions that bench/peers/<name>.txt pins for the packages in `wanted`."""
    lines = (BENCH / "peers" / f"{name}.txt").read_text().splitlines()
    pins = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return {package: pins[package] for package in wanted}


@dataclasses.dataclass(frozen=True)
class Tree:
    """A process and its descendants."""

    root: int

    def pids(self) -> list[int]:
        parents = dict(_parents())
        found = [self.root] if self.root in parents else []
        for pid in found:
            found.extend(child for child, parent in parents.items() if parent == pid)
        return found

    def cpu_s(self) -> float:
        """User + system CPU seconds of the live tree, in nanosecond steps, plus what the root has reaped (10 ms steps).

        Source: clock_getcpuclockid(3); a process's CPU clock includes its threads, also those that have ended.
        """
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += time.clock_gettime(((~pid) << 3) | 2)
        fields = _stat(self.root)
        return total + (int(fields[13]) + int(fields[14])) / TICKS

    def rss_mb(self) -> float:
        """Resident memory in MB; pages shared by two processes of the tree count twice."""
        pages = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * PAGE / 1e6


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state (field 3 of proc(5)) on: [1] parent, [13] cutime, [14] cstime."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _parents() -> Iterator[tuple[int, int]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), int(_stat(int(entry.name))[1])


@contextlib.contextmanager
def process(
    argv: Sequence[str | Path], core: int | set[int], log: Path, **options: object
) -> Iterator[subprocess.Popen]:
    """Start `argv` in a session of its own, pinned to `core` (or several); the session is ended on the way out,
    whatever happens."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            [str(part) for part in argv],
            stderr=sink,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core} if isinstance(core, int) else core),
            **({"stdin": subprocess.DEVNULL, "stdout": sink} | options),
        )
    try:
        yield child
    finally:
        _end(child)


def _end(child: subprocess.Popen, patience_s: float = 10.0) -> None:
    tree = Tree(child.pid).pids()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience_s)
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if child.stdout is not None:
        child.stdout.close()


def wait_ready(url: str, child: subprocess.Popen, log: Path, limit_s: float = 120.0) -> float:
    """Seconds until `url` answers 200; BenchError with the log's tail when the process ends or the limit passes."""
    start = time.monotonic()
    while child.poll() is None and time.monotonic() - start < limit_s:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as reply:
            if reply.status == 200:
                return time.monotonic() - start
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    state = "did not become ready" if child.poll() is None else f"ended with {child.returncode}"
    raise BenchError(f"{url} {state}; end of its log:\n{tail}")


def exit_on_sigterm() -> None:
    """Make SIGTERM unwind like Ctrl-C, so that every process started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
