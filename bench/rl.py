"""How fast a learner turns this machine's time into a policy: steps per CPU-second, and time to a mark.

    python bench/rl.py                                       # Atoll and its peers; HalfCheetah-v5, 3 seeds
    python bench/rl.py --learners atoll --tasks Hopper-v5 --cpu 240 --wall 120

A run is one (learner, task, seed): a process of its own in an environment of its own, with a budget of CPU and wall
seconds. It keeps its policies as plain matrices. All are then played in the same way: in gymnasium, without noise, ten
episodes from the same ten seeds. Robots that walk on command are Atoll's own tasks, which only Atoll learns here: 64
episodes of random commands in `Sim`, judged by the share that follows them. Runs that are in the results file already
are not repeated (--again repeats them).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import BENCH, REPO, BenchError, environment, exit_on_sigterm, pinned_versions, provenance
from rl_plot import plot

LEARNERS = {
    "atoll": {"script": "atoll_rl.py"},
    "atoll-offpolicy": {"script": "atoll_rl.py", "algorithm": "offpolicy"},
    "sb3-default": {"script": "sb3_rl.py", "peer": "sb3", "settings": "default"},
    "sb3-cleanrl": {"script": "sb3_rl.py", "peer": "sb3", "settings": "cleanrl"},
    "sb3-tuned": {"script": "sb3_rl.py", "peer": "sb3", "settings": "tuned"},
    "skrl": {"script": "skrl_rl.py", "peer": "skrl"},
    "rl_games": {"script": "rl_games_rl.py", "peer": "rl_games"},
}
DEFAULT = "atoll,sb3-default,sb3-tuned,skrl,rl_games"
MARKS = {
    "HalfCheetah-v5": ((3000, 30), (5800, 90)),
    "Hopper-v5": ((2400, 120),),
    "Walker2d-v5": ((3500, 240),),
    "Ant-v5": ((3300, 360),),
    "Humanoid-v5": (),
    "go1-velocity": ((0.8, 300),),
    "humanoid-walk": ((0.8, 1200),),
}
"""Mean returns, or for Atoll's own tasks shares of episodes, and the wall seconds to reach them in."""
OWN = ("go1-velocity", "humanoid-walk")
EPISODES, OWN_EPISODES = 10, 64


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--learners", default=DEFAULT, help=f"of {', '.join(LEARNERS)}")
    parser.add_argument("--tasks", default="HalfCheetah-v5", help=f"of {', '.join(MARKS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cpu", type=float, default=180, help="CPU seconds a run may use (default %(default)s)")
    parser.add_argument("--wall", type=float, default=90, help="wall seconds a run may take (default %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="steps of Atoll's runs (0: the task's preset)")
    parser.add_argument("--every", type=int, default=24, help="policies kept a run (default %(default)s)")
    parser.add_argument("--threads", default="1,2", help="threads to sweep; the best is kept (default %(default)s)")
    parser.add_argument("--sweep", type=float, default=8, help="CPU seconds a run of the sweep (default %(default)s)")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=REPO / "bench" / "results" / "rl.json")
    args = parser.parse_args()
    for what, known in (("learners", LEARNERS), ("tasks", MARKS)):
        setattr(args, what, getattr(args, what).split(","))
        if unknown := set(getattr(args, what)) - set(known):
            parser.error(f"unknown {what}: {', '.join(sorted(unknown))}")
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.threads = [int(threads) for threads in args.threads.split(",")]
    return args


def learn(learner: str, folder: Path, **asked: object) -> dict:
    """One run; returns what its rows.json says."""
    chosen = LEARNERS[learner]
    python = environment(chosen["peer"]) / "bin" / "python" if "peer" in chosen else Path(sys.executable)
    threads = str(asked["threads"])
    told = {"folder": str(folder), **chosen, **asked}
    env = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    script = BENCH / "rl_peers" / chosen["script"]
    done = subprocess.run(
        [python, "-W", "ignore", script, json.dumps(told)], env=env, timeout=7200, capture_output=True, text=True
    )
    if done.returncode:
        raise BenchError(f"{learner} on {asked['env']} failed:\n{done.stderr[-2000:]}")
    return json.loads((folder / "rows.json").read_text())


def sweep(learner: str, task: str, args: argparse.Namespace) -> dict:
    """Steps per CPU-second and per second by threads, from short runs; `best` has the most steps per second."""
    rates = {}
    for threads in args.threads:
        with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
            done = learn(
                learner, Path(name), env=task, seed=0, threads=threads, cpu_s=args.sweep, wall_s=args.sweep * 4,
                every=1, steps=0,
            )  # fmt: skip
        rates[threads] = {
            "per_cpu_s": round(done["steps"] / done["cpu_s"]),
            "per_s": round(done["steps"] / done["wall_s"]),
        }
    return {"rates": rates, "best": max(rates, key=lambda threads: rates[threads]["per_s"])}


def score(task: str) -> str:
    """By what a policy is judged."""
    return "success" if task in OWN else "return"


def play(task: str, path: Path) -> dict[str, float]:
    """How well the policy in `path` does, without noise."""
    w = dict(np.load(path, allow_pickle=False))
    return follow(task, w) if task in OWN else earn(task, w)


def act(w: dict, seen: np.ndarray) -> np.ndarray:
    """(n, o) -> (n, a)."""
    x = np.clip((seen - w["mean"]) * w["scale"], -10, 10)
    layers = [(w[f"w{i}"], w[f"b{i}"]) for i in range(sum(name.startswith("w") for name in w))]
    for weight, bias in layers[:-1]:
        x = x @ weight + bias
        x = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "elu": elu}[str(w["activation"])](x)
    return squash(x @ layers[-1][0] + layers[-1][1], w)


def earn(task: str, w: dict) -> dict[str, float]:
    """Returns in gymnasium: EPISODES episodes from fixed seeds."""
    import gymnasium

    envs = [gymnasium.make(task) for _ in range(EPISODES)]
    seen = np.stack([env.reset(seed=1000 + i)[0] for i, env in enumerate(envs)])
    returns, live = np.zeros(EPISODES), np.ones(EPISODES, bool)
    while live.any():
        action = act(w, seen)
        for i in np.flatnonzero(live):
            seen[i], reward, terminated, truncated, _ = envs[i].step(action[i].astype(np.float32))
            returns[i] += reward
            live[i] = not (terminated or truncated)
    for env in envs:
        env.close()
    return {"return": round(float(returns.mean()), 1), "worst": round(float(returns.min()), 1)}


def follow(task: str, w: dict) -> dict[str, float]:
    """The share of OWN_EPISODES episodes that lasted and followed their commands, and the mean errors of all."""
    from atoll.physical.sim import load_task
    from atoll.physical.sim.envs import legged
    from atoll.physical.sim.rollout import rollout
    from atoll.physical.sim.sim import Sim

    sim, errors = Sim(load_task(task), OWN_EPISODES), []
    done = rollout(
        sim,
        lambda seen, begun: act(w, seen),
        OWN_EPISODES,
        seed=1000,
        each=lambda step: errors.append((legged.linear_error(sim).mean(), legged.angular_error(sim).mean())),
    )
    linear, angular = np.mean(errors, axis=0)
    return {
        "success": round(float(done.held.mean()), 3), "return": round(float(done.returns.mean()), 1),
        "steps_lasted": round(float(done.lengths.mean())), "linear_m_s": round(float(linear), 3),
        "angular_rad_s": round(float(angular), 3),
    }  # fmt: skip


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def squash(x: np.ndarray, w: dict) -> np.ndarray:
    if w["squash"] == "bounds":
        return np.clip(x, w["low"], w["high"])
    return w["shift"] + w["gain"] * (np.tanh(x) if w["squash"] == "tanh" else np.clip(x, -1, 1))


def run(learner: str, task: str, seed: int, threads: int, args: argparse.Namespace) -> dict:
    told = provenance()
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as name:
        done = learn(
            learner, Path(name), env=task, seed=seed, threads=threads, cpu_s=args.cpu, wall_s=args.wall,
            every=args.every, steps=args.steps,
        )  # fmt: skip
        rows = []
        for row in done["rows"]:
            rows.append(row | play(task, Path(name) / row.pop("file")))
    by = score(task)
    reached = {str(mark): next((row for row in rows if row[by] >= mark), None) for mark, _ in MARKS[task]}
    return {
        "learner": learner, "task": task, "seed": seed, "threads": threads, "steps": done["steps"],
        "cpu_s": round(done["cpu_s"], 2), "wall_s": round(done["wall_s"], 2),
        "steps_per_cpu_s": round(done["steps"] / done["cpu_s"]), "steps_per_s": round(done["steps"] / done["wall_s"]),
        "best": max(row[by] for row in rows), "last": rows[-1][by],
        "marks": {mark: row and {k: row[k] for k in ("steps", "cpu_s", "wall_s")} for mark, row in reached.items()},
        "curve": rows, "budget": {"cpu_s": args.cpu, "wall_s": args.wall}, **told,
    }  # fmt: skip


def medians(runs: list[dict]) -> list[dict]:
    """One row a (learner, task): medians over the seeds; a mark's time is None unless most seeds reached it."""
    rows = []
    for learner, task in dict.fromkeys((run["learner"], run["task"]) for run in runs):
        same = [run for run in runs if (run["learner"], run["task"]) == (learner, task)]
        row = {"learner": learner, "task": task, "seeds": [run["seed"] for run in same]}
        for name in ("steps_per_cpu_s", "steps_per_s", "best", "last", "cpu_s", "wall_s"):
            row[name] = statistics.median(run[name] for run in same)
        for mark in same[0]["marks"]:
            for unit in ("cpu_s", "wall_s"):
                times = sorted(run["marks"][mark][unit] if run["marks"][mark] else float("inf") for run in same)
                middle = statistics.median(times)
                row[f"{mark}_{unit}"] = None if middle == float("inf") else round(middle, 1)
        rows.append(row)
    return rows


def main() -> None:
    args = parse_args()
    exit_on_sigterm()
    report = json.loads(args.out.read_text()) if args.out.exists() else {"sweeps": {}, "runs": []}
    wanted = [(learner, task, seed) for task in args.tasks for seed in args.seeds for learner in args.learners]
    for learner, task, seed in wanted:
        same = [r for r in report["runs"] if (r["learner"], r["task"], r["seed"]) == (learner, task, seed)]
        if same and not args.again:
            continue
        if f"{learner} {task}" not in report["sweeps"]:
            report["sweeps"][f"{learner} {task}"] = sweep(learner, task, args)
        done = run(learner, task, seed, report["sweeps"][f"{learner} {task}"]["best"], args)
        report["runs"] = [r for r in report["runs"] if r not in same] + [done]
        report["medians"] = medians(report["runs"])
        report["versions"] = versions()
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        plot(report["runs"], args.out.parent, MARKS, score)
        print(json.dumps({k: v for k, v in done.items() if k not in ("curve", "hardware")}), flush=True)
    for row in report.get("medians", []):
        print(json.dumps(row))


def versions() -> dict:
    import gymnasium
    import mujoco

    own = {"mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__}
    told = {"sb3": ["stable-baselines3", "torch"], "skrl": ["skrl", "torch"]}
    told["rl_games"] = ["rl-games", "envpool", "torch"]
    return {"atoll": own} | {peer: pinned_versions(peer, packages) for peer, packages in told.items()}


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
