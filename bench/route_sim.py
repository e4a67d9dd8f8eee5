"""A small discrete-event world to compare routing policies in: the same requests, engines and network for each.

Engines: `SLOTS` requests at once, first come first served, one prefill at a time at `PREFILL` tokens/s, then `DECODE`
tokens/s a stream; a prefix cache of `CACHE` tokens, least recently used out first, which the router does not see.
Network: round trips from great-circle distances (2 ms + 1.5 x the time of light in fibre, 200 km/ms): an estimate.
One picture of the fleet is shared by all gateways; answers change it when they arrive, half a round trip later.
"""

import dataclasses
import gzip
import heapq
import itertools
import json
import math
import random
import statistics
from collections import OrderedDict, deque
from pathlib import Path

from atoll.core.distance import great_circle
from atoll.core.policies import Policy
from atoll.core.prefix import OFFSETS, Memory, blocks
from atoll.core.route import BYTES_PER_TOKEN, JOULES_PER_KWH, Objective, Request
from atoll.core.types import NANO, Price
from atoll.core.view import Spot, View
from atoll.regions.catalogue import read_regions

MODEL = "sim"
SLOTS, PREFILL, DECODE, CACHE, JOULES = 32, 8000.0, 40.0, 200_000, 1.0


@dataclasses.dataclass(frozen=True)
class Arrival:
    """`at` in seconds; `origin` is an index into the regions; tokens in and out; prefix hashes."""

    at: float
    origin: int
    prompt: int
    output: int
    blocks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class World:
    """Live regions of the catalogue, `each` endpoints in each; carbon and price are drawn once, by seed."""

    each: int
    ids: tuple[str, ...]
    rtts: tuple[dict[str, float], ...]
    carbon: dict[str, float]
    price: dict[str, Price]

    @property
    def endpoints(self) -> int:
        return self.each * len(self.ids)


def world(each: int, seed: int = 5) -> World:
    rng = random.Random(seed)
    live = [region for region in read_regions() if region.status == "live"]
    ids = tuple(region.id for region in live)
    rtts = tuple(
        {b.id: 0.002 + 1.5 * 2 * great_circle(a.lat, a.lon, b.lat, b.lon) / 200_000 for b in live} for a in live
    )
    carbon = {id: rng.uniform(20, 800) for id in ids}
    factor = {id: rng.uniform(0.7, 1.3) for id in ids}
    price = {id: Price(round(150 * f), round(600 * f), round(30 * f)) for id, f in factor.items()}
    return World(each, ids, rtts, carbon, price)


def conversations(where: World, rate: float, seconds: float, hot: float, skew: float = 0.6) -> list[Arrival]:
    """Chats of 1 to 8 turns under 200 shared system prompts (Zipf `hot`) of 100 to 4,000 tokens, from origins whose
    shares follow Zipf `skew`, at `rate` requests a second; 20 s between turns, 20 to 600 tokens a side."""
    rng = random.Random(7)
    systems = [rng.randbytes(BYTES_PER_TOKEN * rng.randrange(100, 4000)) for _ in range(200)]
    popular = [1 / (i + 1) ** hot for i in range(len(systems))]
    shares = [1 / (i + 1) ** skew for i in range(len(where.ids))]
    rng.shuffle(shares)
    made, start = [], 0.0
    while start < seconds:
        start += rng.expovariate(rate / 4.5)
        origin, at = rng.choices(range(len(shares)), shares)[0], start
        text = rng.choices(systems, popular)[0]
        for _ in range(rng.randint(1, 8)):
            text += rng.randbytes(BYTES_PER_TOKEN * rng.randrange(20, 600))
            output = rng.randrange(20, 400)
            if at < seconds:
                made.append(Arrival(at, origin, len(text) // BYTES_PER_TOKEN, output, blocks(text)))
            text += rng.randbytes(BYTES_PER_TOKEN * output)
            at += output / DECODE + rng.expovariate(1 / 20)
    return sorted(made, key=lambda a: a.at)


def mooncake(path: Path, where: World, rate: float, skew: float = 0.6) -> list[Arrival]:
    """A Mooncake trace (JSON lines: timestamp in ms, input_length, output_length, hash_ids of 512-token blocks), its
    clock scaled to `rate` requests a second. It has no origins: they are drawn by the second block, which tells chats
    apart, with Zipf shares. A router's cut within a block takes the whole block's name, so no match is overstated."""
    rng = random.Random(7)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    span = (rows[-1]["timestamp"] - rows[0]["timestamp"]) / 1000
    scale = len(rows) / rate / span
    shares = [1 / (i + 1) ** skew for i in range(len(where.ids))]
    rng.shuffle(shares)
    made = []
    for row in rows:
        ids, prompt = row["hash_ids"], row["input_length"]
        chat = random.Random(ids[min(1, len(ids) - 1)])
        cuts = [cut for cut in OFFSETS if cut <= BYTES_PER_TOKEN * prompt]
        names = [ids[math.ceil(cut / BYTES_PER_TOKEN / 512) - 1] << 21 | cut for cut in cuts]
        origin = chat.choices(range(len(shares)), shares)[0]
        at = row["timestamp"] / 1000 * scale
        made.append(Arrival(at, origin, prompt, max(1, row["output_length"]), tuple(names)))
    return made


class Engine:
    """One endpoint's engine, as seen by the clock."""

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self.running = 0
        self.prefill_free = 0.0
        self.cache: OrderedDict[int, int] = OrderedDict()
        self.held = 0

    def cached(self, arrival: Arrival) -> int:
        for depth in range(len(arrival.blocks), 0, -1):
            if arrival.blocks[depth - 1] in self.cache:
                return min(arrival.prompt - 1, OFFSETS[depth - 1] // BYTES_PER_TOKEN)
        return 0

    def keep(self, arrival: Arrival) -> None:
        sizes = [(b - a) // BYTES_PER_TOKEN for a, b in itertools.pairwise((0, *OFFSETS[: len(arrival.blocks)]))]
        for key, size in reversed(list(zip(arrival.blocks, sizes, strict=True))):
            self.held += 0 if key in self.cache else size
            self.cache[key] = size
            self.cache.move_to_end(key)
        while self.held > CACHE:
            self.held -= self.cache.popitem(last=False)[1]


class Run:
    """One policy through one trace. `outcome` sums it up."""

    def __init__(self, where: World, trace: list[Arrival], policy: Policy, objective: Objective, seed: int = 3) -> None:
        self.where, self.trace, self.policy, self.objective = where, trace, policy, objective
        self.rng, self.view, self.memory = random.Random(seed), View(), Memory()
        self.engines: dict[str, Engine] = {}
        self.region: dict[str, str] = {}
        for id in where.ids:
            self.view.region(id, "live", where.carbon[id])
            for i in range(where.each):
                name = f"{id}/{i}"
                self.view.join(MODEL, Spot(name, id, slots=SLOTS, price=where.price[id], hold=5.0, joules=JOULES))
                self.engines[name], self.region[name] = Engine(), id
        self.events: list[tuple[float, int, str, int]] = []
        self.number = itertools.count()
        self.placed: list[tuple[str, object, float]] = []
        self.ttft: list[float] = []
        self.peaks: list[float] = []
        self.hit = self.dollars = self.grams = 0.0
        self.read_from_cache: dict[int, int] = {}
        self.forgiven = 0.0

    def outcome(self) -> dict:
        for i, arrival in enumerate(self.trace):
            while self.events and self.events[0][0] <= arrival.at:
                self._step()
            self._arrive(i, arrival)
        while self.events:
            self._step()
        ttft, n = sorted(self.ttft), len(self.trace)
        prompts = sum(a.prompt for a in self.trace)
        return {
            "requests": n,
            "ttft_mean_s": round(statistics.fmean(ttft), 4),
            "ttft_p50_s": round(ttft[n // 2], 4),
            "ttft_p99_s": round(ttft[int(n * 0.99)], 4),
            "hit_rate": round(self.hit / prompts, 4),
            "max_over_mean_load": round(statistics.fmean(self.peaks), 2),
            "dollars_per_1000": round(self.dollars / n * 1000, 4),
            "grams_co2_per_1000": round(self.grams / n * 1000, 2),
        }

    def _at(self, when: float, what: str, i: int) -> None:
        heapq.heappush(self.events, (when, next(self.number), what, i))

    def _arrive(self, i: int, a: Arrival) -> None:
        if a.at - self.forgiven > 5.0:
            self.view.forgive(a.at)
            self.forgiven = a.at
        rtts = self.where.rtts[a.origin]
        request = Request(
            str(i), MODEL, prompt=a.prompt, output=a.output, prompt_bytes=a.prompt * BYTES_PER_TOKEN, blocks=a.blocks,
            rtts=rtts,
        )  # fmt: skip
        decision = self.policy(request, self.view, self.memory, self.objective, self.rng, a.at)
        self.memory.apply(decision)
        name = decision.chosen
        rtt = rtts[self.region[name]]
        spot = self.view.spot(MODEL, name)
        ticket = self.view.begin(MODEL, spot, a.prompt - decision.cached, a.at, decision.cached, rtt)
        self.placed.append((name, ticket, rtt))
        self._at(a.at + rtt / 2, "reach", i)
        if i % 10 == 0:
            loads = [s.load for s in self.view.groups[MODEL].spots.values()]
            self.peaks.append(max(loads) / (sum(loads) / len(loads)))

    def _step(self) -> None:
        now, _, what, i = heapq.heappop(self.events)
        name, ticket, rtt = self.placed[i]
        engine = self.engines[name]
        if what == "reach":
            engine.queue.append(i)
        elif what == "first":
            self.ttft.append(now - self.trace[i].at)
            self.view.first(ticket, now)
            return
        elif what == "end":
            engine.running -= 1
            self._at(now + rtt / 2, "finish", i)
        else:
            self.view.finish(ticket, now, self.trace[i].output, True, self.read_from_cache[i])
            return
        while engine.queue and engine.running < SLOTS:
            self._work(now, engine, engine.queue.popleft())

    def _work(self, now: float, engine: Engine, i: int) -> None:
        """A slot takes a request: what its cache holds is not read again."""
        a, (name, _, rtt) = self.trace[i], self.placed[i]
        region, cached = self.region[name], engine.cached(a)
        engine.keep(a)
        engine.running += 1
        first = max(now, engine.prefill_free) + (a.prompt - cached) / PREFILL
        engine.prefill_free = first
        self._at(first + rtt / 2, "first", i)
        self._at(first + a.output / DECODE, "end", i)
        price, fresh = self.where.price[region], a.prompt - cached
        self.hit += cached
        self.read_from_cache[i] = cached
        self.dollars += (fresh * price.input + cached * price.cached + a.output * price.output) / NANO
        self.grams += (fresh + a.output) * JOULES / JOULES_PER_KWH * self.where.carbon[region]
