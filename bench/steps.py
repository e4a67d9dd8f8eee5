"""Claim: environment steps with observation, reward and reset at least as fast as EnvPool's, and three times as fast as
Gymnasium's SyncVectorEnv, on two cores.

`python bench/steps.py [--tasks half-cheetah,hopper] [--rounds 9] [--seconds 1.5] [--out bench/results/steps.json]`
Peers take turns: in each round each of them runs for some seconds, alone, on cores 0 and 1. A ratio is the median over
rounds of the ratios within a round. CPU seconds are those of the peer's whole process tree. Gymnasium and Atoll run on
the same MuJoCo; EnvPool 1.2.5 brings its own. All use the same random actions, and all begin ended episodes anew.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import BENCH, BenchError, environment, exit_on_sigterm, pinned_versions, process, provenance
from steps_worker import GYM

from atoll.physical.sim import TASKS

ALONE = ("go1-velocity",)  # no peer has the same task
SIMS, FEW = 64, 8


@dataclass(frozen=True)
class Row:
    """A peer with `n` simulations on `threads` threads, which may use the cores 0..cores-1."""

    peer: str
    n: int
    threads: int
    cores: int

    def __str__(self) -> str:
        return f"{self.peer} n={self.n} threads={self.threads}"


ROWS = (
    Row("atoll", SIMS, 1, 1),
    Row("atoll", SIMS, 2, 2),
    Row("atoll", FEW, 2, 2),
    Row("envpool", SIMS, 1, 1),
    Row("envpool", SIMS, 2, 2),
    Row("envpool-async", SIMS, 2, 2),
    Row("envpool", FEW, 2, 2),
    Row("gymnasium-sync", FEW, 1, 1),
    Row("gymnasium-async", FEW, FEW, 2),
)


class Worker:
    def __init__(self, row: Row, task: str, stack: contextlib.ExitStack, log: Path):
        python = environment("envpool") / "bin/python" if row.peer.startswith("envpool") else Path(sys.executable)
        argv = [python, BENCH / "steps_worker.py", row.peer, task, str(row.n), str(row.threads)]
        quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCH.parent), "PYTHONWARNINGS": "ignore"}
        self.row, self.log = row, log
        self.child = stack.enter_context(
            process(
                argv,
                set(range(row.cores)),
                log,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=log.parent,  # MuJoCo writes its log there
                env=os.environ | quiet,
            )
        )
        self.versions = self._answer()["ready"]

    def turn(self, seconds: float) -> dict:
        self.child.stdin.write(f"{seconds}\n")
        self.child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self.child.stdout.readline()
        if not line:
            raise BenchError(f"{self.row} ended; its log:\n{self.log.read_text()[-2000:]}")
        return json.loads(line)


def measure(task: str, rows: tuple[Row, ...], rounds: int, seconds: float) -> dict:
    """All rows of one task, in turns."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = [Worker(row, task, stack, Path(folder) / f"{i}.log") for i, row in enumerate(rows)]
        for worker in workers:
            worker.turn(0.2)
        turns = [[worker.turn(seconds) for worker in workers] for _ in range(rounds)]
    told = {str(worker.row): summary([each[i] for each in turns]) for i, worker in enumerate(workers)}
    return {"rows": told, "versions": {str(worker.row): worker.versions for worker in workers}} | ratios(told)


def summary(turns: list[dict]) -> dict:
    wall = [each["steps"] / each["wall_s"] for each in turns]
    cpu = [each["steps"] / each["cpu_s"] for each in turns]
    steps, episodes = sum(each["steps"] for each in turns), sum(each["episodes"] for each in turns)
    return {
        "steps_per_s": round(statistics.median(wall)),
        "steps_per_cpu_s": round(statistics.median(cpu)),
        "mean_episode": round(steps / episodes, 1) if episodes else None,
        "mean_reward": round(statistics.fmean(each["reward"] for each in turns), 4),
        "runs": {"steps_per_s": [round(x) for x in wall], "steps_per_cpu_s": [round(x) for x in cpu]},
    }


def ratios(told: dict) -> dict:
    """Of Atoll to each peer: wall at the best thread count of each, CPU at one thread."""

    def best(peer: str, n: int) -> list[int]:
        names = (f"{peer} n={n} ", f"{peer}-async n={n} ") if peer == "envpool" else (f"{peer} n={n} ",)
        rows = [row for name, row in told.items() if name.startswith(names)]
        return max(rows, key=lambda row: row["steps_per_s"])["runs"]["steps_per_s"]

    def ratio(mine: list[int], theirs: list[int]) -> float:
        return round(statistics.median(a / b for a, b in zip(mine, theirs, strict=True)), 2)

    def cpu(peer: str, n: int, threads: int) -> list[int]:
        return told[f"{peer} n={n} threads={threads}"]["runs"]["steps_per_cpu_s"]

    if not any(name.startswith("envpool") for name in told):
        return {}
    return {
        "wall": {
            "envpool": ratio(best("atoll", SIMS), best("envpool", SIMS)),
            f"envpool, {FEW} simulations": ratio(best("atoll", FEW), best("envpool", FEW)),
            "gymnasium-sync": ratio(best("atoll", SIMS), best("gymnasium-sync", FEW)),
            "gymnasium-async": ratio(best("atoll", SIMS), best("gymnasium-async", FEW)),
        },
        "cpu": {
            "envpool": ratio(cpu("atoll", SIMS, 1), cpu("envpool", SIMS, 1)),
            "gymnasium-sync": ratio(cpu("atoll", SIMS, 1), cpu("gymnasium-sync", FEW, 1)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join((*GYM, *ALONE)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "steps.json")
    options = parser.parse_args()
    exit_on_sigterm()
    told = provenance() | {"envpool": pinned_versions("envpool", ["envpool"]), "tasks": {}, "absent": []}
    for task in options.tasks.split(","):
        if task not in TASKS:
            told["absent"].append(task)
            print(f"{task}: there is no such task (yet)")
            continue
        rows = ROWS if task in GYM else tuple(row for row in ROWS if row.peer == "atoll")
        told["tasks"][task] = of = measure(task, rows, options.rounds, options.seconds)
        for name, row in of["rows"].items():
            print(f"{task:13} {name:36} {row['steps_per_s']:8} /s {row['steps_per_cpu_s']:8} /CPU-s", flush=True)
        print(f"{task:13} ratios: {json.dumps({'wall': of.get('wall'), 'cpu': of.get('cpu')})}", flush=True)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
