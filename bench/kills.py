"""Every stage of the physical loop, its worker killed (SIGKILL) at random moments: the same digests as without a kill.

python bench/kills.py                     # every stage, 3 rounds each, about 15 minutes on two cores
python bench/kills.py --stages rl,synth --rounds 10
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import BENCH, REPO, provenance

sys.path.insert(0, str(REPO))

from atoll import app
from atoll.core.runs import Order, Step
from atoll.jobs.desk import Desk
from atoll.jobs.steps import versions
from atoll.settings import load

LIMIT_S = 900.0
MOST_KILLS = 4
LENIENT = {"success": 0.0, "stress": 0.0, "gap": 1.0, "rank": -1.0}
QUICK = {"episodes": 40, "part": 20, "noises": [], "stress": [1.0], "videos": 1, "rule": LENIENT}
JOBS = (
    Step("synth", "synth", {"task": "reach", "demonstrations": 10, "amplify_to": 300}),
    Step("pictures", "pictures", {"count": 150}),
    Step("imitate", "imitate", {"steps": 1500}, {"dataset": "synth"}),
    Step("rl", "rl", {"task": "reach", "steps": 120_000}),
    Step("sim", "sim", {"episodes": 96}, {"policy": "imitate"}),
    Step("validate", "validate", QUICK, {"policy": "imitate"}),
    Step("serve", "serve", {"name": "arm"}, {"policy": "imitate", "report": "validate"}),
)


def settle(desk: Desk, id: str) -> Mapping[str, Any]:
    deadline = time.monotonic() + LIMIT_S
    while (row := desk.row(id))["state"] in {"queued", "running"}:
        if time.monotonic() > deadline:
            raise SystemExit(f"{id} does not end: {row}")
        desk.tend()
        time.sleep(0.05)
    if row["state"] != "done":
        raise SystemExit(f"{id} is {row['state']}: {row['error']}")
    return row


def killed(desk: Desk, step: Step, seconds: float, chance: random.Random) -> tuple[str, list[float]]:
    """The step alone; its worker is killed after a random part of `seconds`, again and again. Its digest, and how far
    each kill came (0..1 of the step's own progress)."""
    id, at = desk.submit(Order((step,)))["id"], []
    while len(at) < MOST_KILLS and desk.row(id)["state"] in {"queued", "running"}:
        desk.tend()
        time.sleep(0.02)
        row = desk.row(id)
        if desk.hand.pid is None or row["state"] != "running":
            continue
        time.sleep(chance.uniform(0, seconds * 0.7))
        if desk.hand.pid is not None and desk.row(id)["state"] == "running":
            os.kill(desk.hand.pid, signal.SIGKILL)
            now = desk.row(id)["steps"][0]
            at.append(round(now["done"] / now["total"], 3) if now["total"] else 0.0)
            while desk.hand.pid is not None:
                time.sleep(0.01)
    return settle(desk, id)["steps"][0]["digest"], at


def measure(desk: Desk, wanted: set[str], rounds: int, seed: int) -> list[dict[str, Any]]:
    chance, digests, results = random.Random(seed), {}, []
    for job in JOBS:
        inputs = {role: digests[name] for role, name in job.inputs.items()}
        step = Step(job.name, job.stage, job.config, inputs)
        began = time.monotonic()
        digests[job.name] = settle(desk, desk.submit(Order((step,)))["id"])["steps"][0]["digest"]
        seconds = time.monotonic() - began
        if job.stage not in wanted:
            continue
        again = [killed(desk, step, seconds, chance) for _ in range(rounds)]
        same = sum(digest == digests[job.name] for digest, _ in again)
        results.append(
            {
                "stage": job.stage,
                "config": dict(job.config),
                "digest": digests[job.name],
                "seconds": round(seconds, 1),
                "rounds": rounds,
                "kills_at": [at for _, at in again],
                "same_digest": same,
            }
        )
        kills = sum(len(at) for _, at in again)
        print(f"{job.stage:9} {seconds:6.1f} s  {kills:3} kills in {rounds} rounds: {same} the same", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(step.stage for step in JOBS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "kills.json")
    wanted = parser.parse_args()
    told = {"bench": "kills", **provenance(), "versions": versions(), "seed": wanted.seed}
    with tempfile.TemporaryDirectory() as folder:
        desk = app.open_desk(load(environment={"HOME": folder}, data=folder))
        try:
            results = measure(desk, set(wanted.stages.split(",")), wanted.rounds, wanted.seed)
        finally:
            desk.close()
    wanted.out.write_text(json.dumps({**told, "results": results}, indent=1) + "\n")
    if any(result["same_digest"] != result["rounds"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
