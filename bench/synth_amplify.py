"""Ten demonstrations of picking and placing, made into a thousand, and a policy learned from them."""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common import BenchError

from atoll.physical.imitation.stage import Config as ImitateConfig
from atoll.physical.imitation.stage import run as imitate
from atoll.physical.policy import load_policy
from atoll.physical.sim import load_task
from atoll.physical.sim.rollout import acting, rollout
from atoll.physical.sim.sim import Sim
from atoll.physical.synth.stage import Config, run

TRIED_ON = 300
UNSEEN = 500_000_000
"""Seeds that nothing was made of."""
EXECUTE = 8


class Quiet:
    def progress(self, done: float, total: float, **figures: float) -> None:
        pass


def measure(runs: int) -> dict:
    rows = [one(seed * 1_000_000_000) for seed in range(runs)]
    names = ("wall_s", "cpu_s", "acceptance", "success")
    middle = {name: statistics.median(row[name] for row in rows) for name in names}
    print(json.dumps(middle), file=sys.stderr, flush=True)
    return {"task": "pick-place", "demonstrations": 10, "made": 1000, "medians": middle, "runs": rows}


def one(seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        data, policy = Path(folder) / "data", Path(folder) / "policy"
        policy.mkdir()
        wall_s, cpu_s = timed(lambda: run(Config(seed=seed), {}, data, Quiet()))
        card = json.loads((data / "card.json").read_text())
        if card["episodes"] != 1000:
            raise BenchError(f"there are {card['episodes']} episodes, not 1000")
        learned = timed(lambda: imitate(ImitateConfig(), {"dataset": data}, policy, Quiet()))
        success, held = play(policy)
    low, high = wilson(success, TRIED_ON)
    told = {
        "seed": seed,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(cpu_s, 1),
        "acceptance": card["generation"]["rate"],
        "frames": card["frames"],
        "learning": {"policy": "mlp, chunks of 16", "wall_s": round(learned[0], 1), "cpu_s": round(learned[1], 1)},
        "success": round(success / TRIED_ON, 4),
        "success_95": [round(low, 4), round(high, 4)],
        "held_to_the_end": round(held / TRIED_ON, 4),
        "episodes": TRIED_ON,
    }
    print(json.dumps(told), file=sys.stderr, flush=True)
    return told


def play(folder: Path) -> tuple[int, int]:
    """How many unseen episodes succeed, and how many are a success at their end."""
    sim = Sim(load_task("pick-place"), 100)
    done = rollout(sim, acting(load_policy(folder, sim), sim, EXECUTE), TRIED_ON, seed=UNSEEN)
    return int(done.successes.sum()), int(done.held.sum())


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def wilson(won: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    share, room = won / of, z * z / of
    middle, reach = share + room / 2, z * math.sqrt(share * (1 - share) / of + room / of / 4)
    return (middle - reach) / (1 + room), (middle + reach) / (1 + room)
