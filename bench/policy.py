"""Claim: a served policy answers within a millisecond, misses no deadline at 200 Hz, and stops within one tick.

    python bench/policy.py [--seconds 5] [--runs 3] [--long 60] [--realtime] [--awake] [--out bench/results/policy.json]

The same perceptron (17-64-64-6, in numpy) behind three doors on loopback: Atoll's own protocol and openpi's, both in
the running cloud (authenticated, with limits, watchdog, stop and audit); and openpi's server class, which has none of
these. The client of openpi's protocol is the stock openpi-client. `floor` is a bare socket that sends back what it got:
what the machine itself costs; and once more with work in between that makes its median as long as Atoll's. Servers on
one core, the robot on another, in turns. Marks: p99 < 1 ms at every rate, no missed deadline in --long seconds at
200 Hz, the first safe action within one tick of a stop. `--realtime` gives servers and robot alike the real-time
scheduler (SCHED_FIFO; needs the right to): on a machine with neighbours, and on a robot, that is what keeps others
away. `--awake` keeps both cores from sleeping between two ticks, as `idle=poll` does on robots.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
from common import BENCH, REPO, BenchError, Tree, environment, exit_on_sigterm, free_port, pinned_versions, process
from common import provenance as where

from atoll import __version__
from atoll.core.gate import Evidence, Rule, Trials, decide, plain
from atoll.core.manifest import ActionLimits, Channel, Manifest
from atoll.physical.policy import MlpPolicy, save_policy
from atoll.physical.serve.record import fingerprint

RATES = (50, 200, 500)
FIGURES = ("p50", "p99", "p99.9", "max", "server_cpu_us")
SIZES = (17, 64, 64, 6)
SERVER_CORE, ROBOT_CORE = 0, 1
BUSY = "floor, as long as atoll"
FIFO = ("chrt", "-f", "50")
LIMITS = ActionLimits((-1.0,) * 6, (1.0,) * 6, (50.0,) * 6, (5000.0,) * 6)


def perceptron() -> MlpPolicy:
    """Weights of a seed. Its velocities and accelerations are limited too, and are checked at each action."""
    rng, weights = np.random.default_rng(0), {}
    for i, (inside, outside) in enumerate(pairwise(SIZES)):
        weights[f"{i}.weight"] = (rng.standard_normal((inside, outside)) * inside**-0.5).astype(np.float32)
        weights[f"{i}.bias"] = np.zeros(outside, np.float32)
    weights |= {"observation.mean": np.zeros(17, np.float32), "observation.scale": np.ones(17, np.float32)}
    weights |= {"action.shift": np.zeros(6, np.float32), "action.scale": np.ones(6, np.float32)}
    seen, given = (Channel("observation", 17),), (Channel("torque", 6, "N m", -1.0, 1.0),)
    return MlpPolicy(Manifest("half-cheetah", "mlp", max(RATES), seen, given, limits=LIMITS), weights)


def write(folder: Path) -> tuple[Path, Path]:
    """The policy and a report in the gate's form, of nothing measured; and `weights.npz` for the peer."""
    policy = perceptron()
    save_policy(policy, folder / "policy")
    (folder / "report").mkdir()
    won, lost = Trials(100, 100), Trials(0, 100)
    evidence = Evidence(won, {1.0: won}, {"other": won}, random=lost)
    told = {
        "decision": "pass",
        "policy": fingerprint(folder / "policy"),
        "incumbent": None,
        "task": "half-cheetah",
        "checks": [check._asdict() for check in decide(evidence, Rule()).checks],
        "evidence": plain(evidence),
        "rule": asdict(Rule()),
        "config": {"note": "a bench, not a gate"},
        "mujoco": "",
    }
    (folder / "report/report.json").write_text(json.dumps(told))
    np.savez(folder / "weights.npz", **policy.weights())
    return folder / "policy", folder / "report"


@contextmanager
def atoll(folder: Path, prefix: tuple[str, ...]) -> Iterator[tuple[tuple[str, int], str]]:
    """A cloud that serves the policy: its address as ws://, its process, and a key."""
    policy, report = write(folder)
    options = ("--json", "--port", "0", "--data", str(folder / "data"), "--models", "silero-vad")
    argv = [*prefix, sys.executable, "-m", "atoll.cli", "up", *options]
    log = folder / "atoll.log"
    with process(argv, SERVER_CORE, log, stdout=subprocess.PIPE, text=True, cwd=REPO) as child:
        line = child.stdout.readline()
        told = json.loads(line) if line else {}
        if "url" not in told:
            raise BenchError(f"atoll did not start: {told or log.read_text()[-2000:]}")
        env = {**os.environ, "ATOLL_URL": told["url"], "ATOLL_API_KEY": told["key"]}
        command = [sys.executable, "-m", "atoll.cli", "policies", "promote", "bench", str(policy), str(report)]
        subprocess.run(command, env=env, check=True, timeout=60, stdout=subprocess.DEVNULL, cwd=REPO)
        yield (told["url"].replace("http", "ws", 1), child.pid), told["key"]


@contextmanager
def peer(script: str, prefix: tuple[str, ...], log: Path, *arguments: Path) -> Iterator[tuple[str, int]]:
    """A script beside this one, that listens on a port; its address and process."""
    port, python = free_port(), environment("openpi") / "bin/python"
    with process([*prefix, python, BENCH / script, port, *arguments], SERVER_CORE, log) as child:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if child.poll() is not None or time.monotonic() > until:
                    raise BenchError(f"{script} does not listen: {log.read_text()[-2000:]}") from None
                time.sleep(0.1)
        yield f"ws://127.0.0.1:{port}", child.pid


def drive(prefix: tuple[str, ...], server: int, **told: object) -> dict:
    """One run of the robot; and the CPU time of the process `server`, in microseconds a tick."""
    used = Tree(server).cpu_s()
    argv = [*prefix, str(environment("openpi") / "bin/python"), "-W", "ignore", str(BENCH / "policy_load.py")]
    done = subprocess.run(
        [*argv, json.dumps(told)], capture_output=True, text=True, timeout=600,
        preexec_fn=lambda: os.sched_setaffinity(0, {ROBOT_CORE}),
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"the robot failed: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    return {**told, "server_cpu_us": round((Tree(server).cpu_s() - used) / max(told.get("ticks", 1), 1) * 1e6, 1)}


def stolen() -> tuple[int, int]:
    """Ticks that the hypervisor gave to others, and all ticks, since boot (proc(5), /proc/stat)."""
    fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[7], sum(fields)


def doors(base: tuple[str, int], key: str, openpi: tuple[str, int], floor: tuple[str, int]) -> dict[str, dict]:
    """Address and process of each server, and who asks it."""
    act = f"{base[0]}/atoll/v1/policies/bench"
    return {
        "atoll": {"client": "native", "url": f"{act}/act", "key": key, "server": base[1]},
        "atoll, openpi's protocol": {
            "client": "openpi",
            "url": f"{act}/openpi?consent=true",
            "key": key,
            "server": base[1],
        },
        "openpi-server": {"client": "openpi", "url": openpi[0], "key": "", "server": openpi[1]},
        "floor": {"client": "floor", "url": floor[0], "key": "", "server": floor[1]},
    }


def measure(folder: Path, args: argparse.Namespace) -> dict:
    prefix = FIFO if args.realtime else ()
    with (
        atoll(folder, prefix) as (base, key),
        peer("policy_openpi.py", prefix, folder / "openpi.log", folder / "weights.npz") as openpi,
        peer("policy_floor.py", prefix, folder / "floor.log") as floor,
    ):
        ways, rates = doors(base, key, openpi, floor), {}
        for hz in RATES:
            seen: dict[str, list[dict]] = {name: [] for name in ways}
            seen[BUSY] = []
            for run in range(args.runs):
                for name in ways if run % 2 else reversed(ways):
                    seen[name].append(drive(prefix, **ways[name], hz=hz, seconds=args.seconds))
                work = busy(seen["atoll"][-1], seen["floor"][-1])
                seen[BUSY].append(drive(prefix, **ways["floor"], **work, hz=hz, seconds=args.seconds))
                for name, runs in seen.items():
                    print(f"{hz} Hz, {name}: {runs[-1]}", file=sys.stderr, flush=True)
            rates[str(hz)] = {name: summary(runs) for name, runs in seen.items()}
        long = {n: drive(prefix, **ways[n], hz=200, seconds=args.long) for n in ("atoll", "openpi-server", "floor")}
        long[BUSY] = drive(prefix, **ways["floor"], **busy(long["atoll"], long["floor"]), hz=200, seconds=args.long)
        stop = drive(prefix, **ways["atoll"], hz=200, stops=args.stops)
    return {"rates": rates, "long_200_hz": long, "stop_200_hz": stop}


def busy(atoll: dict, floor: dict) -> dict[str, int]:
    """The work that makes the floor's usual round trip as long as Atoll's."""
    return {"work_us": max(round((atoll["p50"] - floor["p50"]) * 1e3), 0)}


@contextmanager
def awake() -> Iterator[None]:
    """Both cores have something to do of the lowest priority there is (SCHED_IDLE), and so never sleep."""
    argv = ["chrt", "-i", "0", sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for core in (SERVER_CORE, ROBOT_CORE):
            child = subprocess.Popen(argv, preexec_fn=lambda core=core: os.sched_setaffinity(0, {core}))
            stack.callback(child.wait)
            stack.callback(child.kill)
        yield


def summary(runs: list[dict]) -> dict:
    """Medians over the runs; what was missed, in all."""
    middle = {name: round(statistics.median(r[name] for r in runs), 3) for name in FIGURES}
    return {**middle, "missed": sum(r["missed"] for r in runs), "runs": runs}


def marks(found: dict) -> dict[str, bool]:
    return {
        "p99 under 1 ms at every rate": all(row["atoll"]["p99"] < 1 for row in found["rates"].values()),
        "no missed deadline at 200 Hz": found["long_200_hz"]["atoll"]["missed"] == 0,
        "safe within one tick of a stop": found["stop_200_hz"]["policy_actions_after"] <= 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--long", type=float, default=60)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--awake", action="store_true")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "policy.json")
    args = parser.parse_args()
    exit_on_sigterm()
    started, (gone, ticks) = where(), stolen()
    with tempfile.TemporaryDirectory() as folder, awake() if args.awake else nullcontext():
        found = measure(Path(folder), args)
    after = stolen()
    found["marks"] = marks(found)
    peers = pinned_versions("openpi", ("openpi-client", "openpi-server", "websockets", "numpy"))
    how = {
        "realtime": args.realtime, "awake": args.awake, "seconds": args.seconds, "runs": args.runs,
        "cores": [SERVER_CORE, ROBOT_CORE],
        "stolen_share": round((after[0] - gone) / max(after[1] - ticks, 1), 4),
        "load_average_at_end": [round(x, 2) for x in os.getloadavg()], "limits": asdict(LIMITS),
        "versions": {"atoll": __version__, "numpy": np.__version__, "peer": peers},
    }  # fmt: skip
    args.out.write_text(json.dumps({"provenance": started, "how": how, **found}, indent=1) + "\n")
    for hz, row in found["rates"].items():
        for name, value in row.items():
            print(f"{hz:>4} Hz  {name:26} p50 {value['p50']}  p99 {value['p99']}  p99.9 {value['p99.9']} ms, "
                  f"missed {value['missed']}, server {value['server_cpu_us']} us CPU")  # fmt: skip
    missed = ", ".join(f"{name} missed {row['missed']}" for name, row in found["long_200_hz"].items())
    print(f"200 Hz for {args.long:g} s: {missed}")
    print(f"stop: {found['stop_200_hz']}\nmarks: {found['marks']}  ({time.strftime('%H:%M')})")


if __name__ == "__main__":
    main()
