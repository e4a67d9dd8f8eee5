"""Claim: one CPU core routes more than 20,000 requests a second over 29 regions x 64 endpoints, and routes them well.

`python bench/route.py [--runs 5] [--mooncake FILE] [--out bench/results/route.json]`
Speed: CPU time of `core.route.route`, the function that the gateway calls, with a prefix memory of 100,000 entries over
a fleet under load; of the updates around it; of the other policies, written for clarity; and of the same score
over every endpoint (`score_all`).
Quality: every policy through the same simulated world and traces (bench/route_sim.py). They are our own renderings of
published rules, not the authors' code. The Rust routers (smg, sglang-router, vllm-router) decide inside their servers
and cannot be called from here; bench/gateway.py measures them as gateways.
"""

import argparse
import dataclasses
import gc
import hashlib
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import route_sim
from common import BENCH, provenance

from atoll.core.policies import POLICIES
from atoll.core.prefix import Memory, blocks
from atoll.core.route import OBJECTIVES, ORDER, Decision, Objective, Request, cached_tokens, closed, route, score, unfit
from atoll.core.types import Price
from atoll.core.view import Spot, View

MODEL, ENTRIES, BATCH = "m", 100_000, 500
FASTEST, BALANCED = OBJECTIVES["fastest"], OBJECTIVES["balanced"]
RNG = random.Random(1)


def score_all(request: Request, view: View, memory: Memory, objective: Objective, rng: object, now: float) -> Decision:
    """`route` without its two levels: every endpoint filtered and scored. No load bound on affinity."""
    held, ranked = memory.holders(request.blocks), []
    for spot in view.groups[MODEL].spots.values():
        if closed(spot, request) is None and unfit(spot, request, now) is None:
            cached = cached_tokens(request, held[spot.name]) if spot.name in held else 0
            ranked.append(score(spot, cached, request, objective))
    ranked.sort()
    return Decision("all", MODEL, tuple(s[2].name for s in ranked[:ORDER]), request.blocks, ranked, [], [])


def fleet(regions: int, each: int) -> View:
    """Regions of different distance, carbon and price; endpoints of eight slots, all under some load."""
    view, rng = View(), random.Random(2)
    for r in range(regions):
        view.region(f"r{r}", "live", carbon=rng.uniform(20, 800), rtt=rng.uniform(0.001, 0.3))
        price = Price(rng.randrange(100, 200), rng.randrange(400, 800), 15)
        for i in range(each):
            view.join(MODEL, Spot(f"r{r}-{i}", f"r{r}", slots=8, price=price, per_token=1 / 5000, hold=5.0))
    for spot in view.groups[MODEL].spots.values():
        for _ in range(rng.randrange(8)):
            view.begin(MODEL, spot, rng.randrange(2000), 0.0)
    return view


def full_memory(view: View) -> tuple[Memory, list[bytes]]:
    """100,000 entries, most with one holder; and prompts whose beginnings it knows."""
    memory, rng = Memory(ENTRIES), random.Random(3)
    names = list(view.groups[MODEL].spots)
    prompts = [rng.randbytes(4096) for _ in range(ENTRIES // 12)]
    for prompt in prompts:
        for _ in range(rng.choice((1, 1, 2))):
            memory.hold(blocks(prompt, MODEL), rng.choice(names))
    return memory, prompts[-2000:]


def requests(prompts: list[bytes], count: int) -> list[Request]:
    """Each begins as a known prompt (0.5 to 4 KiB of it) and ends as a new one (up to 2 KiB)."""
    rng, made = random.Random(4), []
    for i in range(count):
        text = rng.choice(prompts)[: rng.choice((512, 1024, 2048, 4096))] + rng.randbytes(rng.choice((0, 512, 2048)))
        made.append(
            Request(
                f"q{i}", MODEL, prompt=len(text) // 4, output=200, prompt_bytes=len(text), blocks=blocks(text, MODEL)
            )
        )  # fmt: skip
    return made


def cpu_us(work: Callable[[], object], count: int, runs: int) -> dict:
    """CPU microseconds per item over `runs` runs of `work`, which does `count` items; garbage collection on."""
    taken = []
    for _ in range(runs):
        gc.collect()
        start = time.process_time_ns()
        work()
        taken.append((time.process_time_ns() - start) / 1000 / count)
    middle = statistics.median(taken)
    return {"us": round(middle, 2), "per_cpu_s": round(1e6 / middle), "runs_us": [round(t, 2) for t in taken]}


def decisions(
    policy: Callable, view: View, memory: Memory, asked: list[Request], objective: Objective, runs: int
) -> dict:  # fmt: skip
    def work() -> None:
        for request in asked:
            policy(request, view, memory, objective, RNG, 1.0)

    work()
    return cpu_us(work, len(asked), runs)


def updates(view: View, memory: Memory, asked: list[Request], runs: int) -> dict:
    """What the gateway does around a decision: hash the prompt, remember, count the request in and out."""
    decided = [(r, route(r, view, memory, FASTEST, RNG, 1.0)) for r in asked]

    def remember() -> None:
        for _, decision in decided:
            memory.apply(decision)

    def count() -> None:
        for request, decision in decided:
            ticket = view.begin(MODEL, view.spot(MODEL, decision.chosen), request.prompt - decision.cached, 1.0)
            view.first(ticket, 1.2)
            view.finish(ticket, 2.0, output=50, ok=True)

    text = random.Random(5).randbytes(4096)
    return {
        "memory.apply": cpu_us(remember, len(decided), runs),
        "view.begin+first+finish": cpu_us(count, len(decided), runs),
        "blocks of 1 KiB": cpu_us(lambda: [blocks(text[:1024], MODEL) for _ in range(BATCH)], BATCH, runs),
        "blocks of 4 KiB": cpu_us(lambda: [blocks(text, MODEL) for _ in range(BATCH)], BATCH, runs),
    }


def agreement(view: View, memory: Memory, asked: list[Request]) -> float:
    """Share of decisions whose best score is that of scoring every endpoint (affinity unbounded in both)."""
    free = dataclasses.replace(BALANCED, bound=float(1 << 40))
    same = 0
    for request in asked:
        mine = route(request, view, memory, free, RNG, 1.0).ranked[0][0]
        same += mine <= score_all(request, view, memory, free, RNG, 1.0).ranked[0][0]
    return round(same / len(asked), 4)


def speed(runs: int) -> dict:
    view = fleet(29, 64)
    memory, prompts = full_memory(view)
    asked = requests(prompts, 10 * BATCH)
    europe = [r._replace(allowed=frozenset(f"r{i}" for i in range(8))) for r in asked]
    one, few = fleet(1, 1), fleet(29, 1)
    slow = asked[:BATCH]
    out = {
        "prefix_entries": len(memory.entries),
        "bytes_per_prefix": round(memory.bytes_per_entry(), 1),
        "29x64": decisions(route, view, memory, asked, FASTEST, runs),
        "29x64 balanced": decisions(route, view, memory, asked, BALANCED, runs),
        "29x64, 8 regions allowed": decisions(route, view, memory, europe, BALANCED, runs),
        "29x1": decisions(route, few, memory, asked, BALANCED, runs),
        "1x1": decisions(route, one, memory, asked, BALANCED, runs),
        "29x64 score_all": decisions(score_all, view, memory, slow, BALANCED, runs),
        "policies 29x64": {
            name: decisions(policy, view, memory, slow, FASTEST, runs)
            for name, policy in POLICIES.items()
            if name != "atoll"
        },
        "best_score_as_score_all": agreement(view, memory, slow),
        "updates": updates(view, memory, asked, runs),
    }
    return out


def quality(mooncake: Path | None) -> dict:
    """Every policy on the same traces."""
    where = route_sim.world(each=2)
    capacity = where.endpoints * route_sim.PREFILL / 1500
    traces = {
        "chats": route_sim.conversations(where, 0.8 * capacity, 120.0, hot=1.0),
        "chats, one hot prompt": route_sim.conversations(where, 0.8 * capacity, 120.0, hot=2.5),
    }
    source = {}
    if mooncake:
        name = "mooncake conversation"
        traces[name] = route_sim.mooncake(mooncake, where, 22.0)
        source = {"file": mooncake.name, "sha256": hashlib.sha256(mooncake.read_bytes()).hexdigest()}
        source |= {"origin": "Mooncake, FAST'25 trace release", "licence": "Apache-2.0"}
    contenders = {f"atoll {name}": (route, objective) for name, objective in OBJECTIVES.items()}
    contenders["atoll fastest, no bound"] = (route, dataclasses.replace(FASTEST, bound=float(1 << 40)))
    contenders |= {name: (policy, FASTEST) for name, policy in POLICIES.items() if name != "atoll"}
    world = {"endpoints": where.endpoints, "slots": route_sim.SLOTS, "prefill_tokens_per_s": route_sim.PREFILL}
    world |= {"decode_tokens_per_s": route_sim.DECODE, "cache_tokens": route_sim.CACHE}
    results = {}
    for trace, arrivals in traces.items():
        results[trace] = {}
        for name, (policy, objective) in contenders.items():
            results[trace][name] = route_sim.Run(where, arrivals, policy, objective).outcome()
            show(trace, name, results[trace][name])
    return {"world": world, "mooncake": source or "not given", "traces": results}


def show(trace: str, name: str, r: dict) -> None:
    print(
        f"{trace:22} {name:24} TTFT mean {r['ttft_mean_s']:8.3f} p50 {r['ttft_p50_s']:7.3f} p99 {r['ttft_p99_s']:8.3f}"
        f" s  hits {r['hit_rate']:5.1%}  load max/mean {r['max_over_mean_load']:5.2f}"
        f"  ${r['dollars_per_1000']:.3f} {r['grams_co2_per_1000']:6.1f} g per 1000",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--mooncake", type=Path)
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "route.json")
    args = parser.parse_args()
    started = provenance()
    fast = speed(args.runs)
    for name, value in fast.items():
        rows = {name: value} if not isinstance(value, dict) or "us" in value else value
        for row, v in rows.items():
            print(f"{row:28}", f"{v['us']:9.2f} us {v['per_cpu_s']:8} a CPU-second" if isinstance(v, dict) else v)
    result = {"provenance": started, "speed": fast, "quality": quality(args.mooncake)}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
