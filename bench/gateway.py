"""CPU time that a gateway adds per request: `python bench/gateway.py [--peers ...] [--runs 3] [--out FILE]`.

Every gateway stands in front of the same mock upstream, pinned to core 0 with one worker; the mock and the load
generator are pinned to core 1. 32 keep-alive connections, loopback, bounded counts. Cost = user + system CPU time of
the gateway's process tree / correct replies; the median of the runs, gateways interleaved. Wrong replies are counted.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import BENCH, REPO, BenchError, Tree, exit_on_sigterm, free_port, process, provenance, wait_ready
from gateways import GATEWAYS, Launch

GATEWAY_CORE, LOAD_CORE = 0, 1
CONCURRENCY = 32
KIND_DIVISORS = {"json": 1, "burst": 5, "paced": 25}
KINDS = tuple(KIND_DIVISORS)
KIND_NOTES = {
    "json": "one JSON reply of about 0.4 KB",
    "burst": "SSE, 60 content chunks, a usage chunk and [DONE] one HTTP chunk each, all in one write of the upstream",
    "paced": "the same chunks, one each 5 ms",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A gateway that is up."""

    name: str
    url: str
    launch: Launch
    tree: Tree
    ready_s: float

    def requests(self, kind: str, base: int) -> int:
        """Requests in a run, `base` of them JSON; streams are dearer and a paced one lasts 0.3 s, so fewer of these."""
        return max(base // self.launch.requests_divisor // KIND_DIVISORS[kind], 2 * CONCURRENCY)


def load(url: str, kind: str, requests: int, concurrency: int, headers: dict[str, str]) -> dict:
    """Run bench/load.py on the load core; the shape of the result is in its docstring."""
    plan = {"url": url, "kind": kind, "requests": requests, "concurrency": concurrency, "headers": headers}
    argv = ["taskset", "-c", str(LOAD_CORE), sys.executable, str(BENCH / "load.py"), json.dumps(plan)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        raise BenchError(f"the load generator failed: {done.stderr[-1000:]}")
    return json.loads(done.stdout)


@contextlib.contextmanager
def mock_upstream(folder: Path) -> Iterator[str]:
    """The mock's URL while it runs."""
    argv = (sys.executable, BENCH / "mock_upstream.py")
    with process(argv, LOAD_CORE, folder / "mock.log", stdout=subprocess.PIPE, text=True) as child:
        port = child.stdout.readline().strip()
        if not port:
            raise BenchError(f"the mock upstream did not start: {(folder / 'mock.log').read_text()[-1000:]}")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def gateway(name: str, upstream: str, folder: Path) -> Iterator[Target]:
    """Start a gateway and wait until it answers and relays one request."""
    port, log = free_port(), folder / f"{name}.log"
    launch = GATEWAYS[name](upstream, folder, port)
    url = f"http://127.0.0.1:{port}"
    with process(launch.argv, GATEWAY_CORE, log, env=os.environ | launch.env, cwd=folder) as child:
        ready_s = wait_ready(url + launch.ready, child, log)
        target = Target(name, url, launch, Tree(child.pid), round(ready_s, 2))
        for _ in range(50):
            first = load(url, "json", 1, 1, launch.headers)
            if first["ok"]:
                break
            time.sleep(0.2)
        else:
            raise BenchError(f"{name} relays nothing: {first['errors']}; its log: {log.read_text()[-1000:]}")
        yield target


def measure(target: Target, kind: str, requests: int) -> dict:
    """One run: the load's result with the tree's CPU microseconds per correct reply."""
    before = target.tree.cpu_s()
    result = load(target.url, kind, requests, CONCURRENCY, target.launch.headers)
    spent = target.tree.cpu_s() - before
    cost = {"cpu_s": round(spent, 6), "us_per_reply": round(spent / result["ok"] * 1e6, 1) if result["ok"] else None}
    return {"requests": requests} | cost | result


def idle_ms_per_s(target: Target, seconds: float = 1.0) -> float:
    """CPU milliseconds per second that the tree spends with no request in flight."""
    before = target.tree.cpu_s()
    time.sleep(seconds)
    return round((target.tree.cpu_s() - before) / seconds * 1e3, 2)


def added_latency(target: Target, upstream: str, requests: int) -> dict:
    """Sequential p50 in ms through the gateway and straight to the mock, and their difference."""
    through = load(target.url, "json", requests, 1, target.launch.headers)
    direct = load(upstream, "json", requests, 1, {})
    added = round(through["p50_ms"] - direct["p50_ms"], 3)
    return {"p50_ms": through["p50_ms"], "direct_p50_ms": direct["p50_ms"], "added_p50_ms": added}


def run_all(targets: list[Target], upstream: str, args: argparse.Namespace) -> dict[str, dict]:
    """All runs of all gateways, interleaved; name -> row."""
    runs = {target.name: {kind: [] for kind in KINDS} for target in targets}
    latency = {target.name: [] for target in targets}
    for target in targets:
        for kind in KINDS:
            warm_up = max(target.requests(kind, args.requests) // 5, 2 * CONCURRENCY)
            load(target.url, kind, warm_up, CONCURRENCY, target.launch.headers)
    for number in range(args.runs):
        for target in targets:
            print(f"run {number + 1}/{args.runs}: {target.name}", file=sys.stderr, flush=True)
            for kind in KINDS:
                runs[target.name][kind].append(measure(target, kind, target.requests(kind, args.requests)))
            latency[target.name].append(added_latency(target, upstream, 200))
    return {target.name: row(target, runs[target.name], latency[target.name]) for target in targets}


def row(target: Target, runs: dict[str, list[dict]], latency: list[dict]) -> dict:
    """What the results file says of a gateway: medians first, then every run."""
    medians = {kind: _median([run["us_per_reply"] for run in runs[kind]]) for kind in KINDS}
    return {
        "role": target.launch.role,
        "versions": target.launch.versions,
        "on": target.launch.features_on,
        "off": target.launch.features_off,
        "median_us_per_reply": medians,
        "median_added_p50_ms": _median([one["added_p50_ms"] for one in latency]),
        "errors": sum(sum(run["errors"].values()) for kind in KINDS for run in runs[kind]),
        "rss_mb": round(target.tree.rss_mb(), 1),
        "idle_cpu_ms_per_s": idle_ms_per_s(target),
        "ready_s": target.ready_s,
        "latency": latency,
        "runs": runs,
    }


def _median(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return round(statistics.median(present), 3) if present else None


def table(rows: dict[str, dict]) -> str:
    """The medians as text, cheapest JSON first."""
    form = "{:<14}{:>9}{:>9}{:>10}{:>11}{:>8}{:>8}{:>8}"
    lines = [form.format("", "JSON us", "burst us", "paced ms", "added ms", "RSS MB", "idle", "errors")]
    for name, one in sorted(rows.items(), key=lambda item: item[1]["median_us_per_reply"]["json"] or 1e12):
        cost = one["median_us_per_reply"]
        paced = round(cost["paced"] / 1e3, 2) if cost["paced"] else None
        label = f"{name} *" if one["role"] != "gateway" else name
        cells = (cost["json"], cost["burst"], paced, one["median_added_p50_ms"], one["rss_mb"])
        lines.append(form.format(label, *map(str, cells), str(one["idle_cpu_ms_per_s"]), one["errors"]))
    notes = "CPU time per correct reply; idle in CPU ms per second; * a floor, not a gateway"
    return "\n".join([*lines, notes])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peers", default=",".join(GATEWAYS), help="comma-separated, of: %(default)s")
    parser.add_argument("--requests", type=int, default=10000, help="JSON requests a run (default %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs a gateway (default %(default)s)")
    parser.add_argument("--out", type=Path, default=REPO / "bench" / "results" / "gateway.json")
    args = parser.parse_args()
    args.names = args.peers.split(",")
    unknown = sorted(set(args.names) - set(GATEWAYS))
    if unknown or args.requests < 1 or args.runs < 1:
        parser.error(f"unknown peers {unknown}" if unknown else "--requests and --runs must be at least 1")
    if (os.cpu_count() or 1) < 2:
        parser.error("needs two cores: one for the gateway, one for the mock upstream and the load")
    return args


def main() -> None:
    args = parse_args()
    exit_on_sigterm()
    report = provenance() | {
        "claim": "CPU time a gateway adds per request",
        "method": " ".join(__doc__.split("\n\n")[1].split()),
        "kinds": KIND_NOTES,
    }
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        upstream = stack.enter_context(mock_upstream(folder))
        targets = [stack.enter_context(gateway(peer, upstream, folder)) for peer in args.names]
        report["mock_alone"] = {kind: load(upstream, kind, 320, CONCURRENCY, {}) for kind in KINDS}
        rows = run_all(targets, upstream, args)
    report["gateways"] = rows
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(rows))
    print(f"written to {args.out}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
