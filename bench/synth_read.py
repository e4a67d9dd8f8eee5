"""Rows of a LeRobot data set at random, read by LeRobot and by us: with pictures and without, one by one and by 64."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import BENCH, REPO, BenchError, environment, pinned_versions

from atoll.physical.synth.stage import Config, run

EPISODES, SIDE = 100, 96
PLAIN, SEEN = "state", "pictures"
PEERS = ("lerobot", "atoll")
WORKER = BENCH / "synth_read_worker.py"


class Quiet:
    def progress(self, done: float, total: float, **figures: float) -> None:
        pass


def measure(runs: int) -> dict:
    """Peers take turns; each turn is a process of its own, on one core, that opens the data set and warms up first."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in (PLAIN, SEEN)}
        for name, folder in folders.items():
            run(Config(amplify_to=EPISODES, images=name == SEEN, height=SIDE, width=SIDE), {}, folder, Quiet())
        told = {}
        for name, folder in folders.items():
            turns = [{peer: turn(peer, folder, Path(scratch)) for peer in PEERS} for _ in range(runs)]
            same([each[peer].pop("sample") for each in turns for peer in PEERS])
            told[name] = summary(turns)
            print(json.dumps({name: told[name]}), file=sys.stderr, flush=True)
    return {"episodes": EPISODES, "pictures_of": f"{SIDE}x{SIDE}", "versions": versions(), **told}


def same(samples: list[dict]) -> None:
    """Numbers equal to the last bit; decoders of pictures may round differently."""
    if len({sample["numbers"] for sample in samples}) != 1:
        raise BenchError("the readers do not read the same numbers")
    if np.ptp([sample["colours"] for sample in samples], axis=0).max(initial=0) > 1:
        raise BenchError("the readers do not see the same pictures")


def turn(peer: str, folder: Path, scratch: Path) -> dict:
    python = environment("lerobot", deps=False) / "bin/python" if peer == "lerobot" else Path(sys.executable)
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf"), "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [python, WORKER, peer, folder],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=600,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
    )
    if done.returncode:
        raise BenchError(f"{peer} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(turns: list[dict]) -> dict:
    rows = {}
    for peer in PEERS:
        for kind in turns[0][peer]["rows_per_s"]:
            rates = [each[peer]["rows_per_s"][kind] for each in turns]
            cpu = [each[peer]["rows_per_cpu_s"][kind] for each in turns]
            rows[f"{peer}, {kind}"] = {
                "rows_per_s": round(statistics.median(rates)),
                "rows_per_cpu_s": round(statistics.median(cpu)),
                "runs": [round(rate) for rate in rates],
            }
    ratios = [each["atoll"]["rows_per_s"]["one by one"] / each["lerobot"]["rows_per_s"]["one by one"] for each in turns]
    backend = turns[0]["lerobot"]["backend"]
    return {"rows": rows, "one_by_one_ratio": round(statistics.median(ratios), 1), "lerobot_backend": backend}


def versions() -> dict:
    return pinned_versions("lerobot", ["lerobot", "torch", "datasets", "torchcodec"])
