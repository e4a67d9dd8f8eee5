"""Added stall at a cut, by grade: the silence between two tokens in which the region died, less a token's time."""

import asyncio
import contextlib
import dataclasses
import json
import math
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import known_cloud as known
from conftest import start
from known_engine import KnownEngine, prompt_ids
from support import CHAT_CARD, SECRET, running, serving

from atoll.core.cards import Remote, Weights
from atoll.core.types import Endpoint
from atoll.engines.remote import RemoteRunner
from atoll.regions.home import Home
from atoll.regions.site import Site

GRADES = ("exact", "fast", "hot")
TOKEN_S, PREFILL_S, RTT_S, PROMPT = 0.02, 0.0002, 0.08, 300
SILENCES = 8
TAIL = 6
MODEL = "smollm2-135m"
SERVED = ("eu-central-1", "eu-west-1", "us-east-1")
CHAT = "/v1/chat/completions"


class PacedEngine(KnownEngine):
    """Reads its prompt at `PREFILL_S` a token before it speaks."""

    async def tell(self, body: dict, chat: bool, send: Callable) -> None:
        await asyncio.sleep(PREFILL_S * len(prompt_ids(body)))
        await super().tell(body, chat, send)


@dataclasses.dataclass
class Cloud:
    """A cloud under test. `strike` breaks the region it is given."""

    http: httpx.AsyncClient
    strike: Callable
    body: dict


@dataclasses.dataclass
class Seen:
    """When pieces of text arrived (seconds from the request), what they said, and when the region was struck."""

    id: str = ""
    at: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    struck: float = math.inf

    @property
    def stall(self) -> float:
        """The longest silence that ended after the region was struck, in seconds."""
        gaps = [
            later - max(earlier, 0) for earlier, later in zip(self.at, self.at[1:], strict=False) if later > self.struck
        ]
        return max(gaps, default=0.0)

    @property
    def pace(self) -> float:
        """Seconds a token took before the region was struck, on average."""
        before = [at for at in self.at if at <= self.struck]
        return (before[-1] - before[0]) / (len(before) - 1)


async def ask(cloud: Cloud, body: dict, cut: int | None = None) -> Seen:
    """The region is struck when `cut` pieces have come."""
    seen, began = Seen(), time.monotonic()
    async with cloud.http.stream("POST", CHAT, json={**body, "stream": True}) as reply:
        if reply.status_code != 200:
            raise RuntimeError((await reply.aread()).decode())
        seen.id = reply.headers["x-request-id"]
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(line)
            if said := "".join(c["delta"].get("content") or "" for c in event["choices"]):
                seen.at.append(time.monotonic() - began)
                seen.text += said
            if cut is not None and len(seen.at) == cut:
                cut = None
                await cloud.strike(reply.headers["x-atoll-region"])
                seen.struck = time.monotonic() - began
    return seen


@contextlib.asynccontextmanager
async def known_regions(fault: str) -> AsyncIterator[Cloud]:
    """Gateway, stations and engine in this process, over real sockets; every region is `RTT_S` away. `fault`: `kill`
    resets connections, `silence` keeps them open and says nothing."""
    remote = Remote("", "known", token_ids=True)
    card = dataclasses.replace(CHAT_CARD, id="known", context=8192, remote=remote, weights=Weights(sha256="ab" * 32))
    async with serving(PacedEngine(TOKEN_S)) as url, running(CHAT_CARD) as house:
        home = Home(house.fleet, Site(), "a", slots=64)
        await home.open(("a", "b", "c"))
        home.offer(card, RemoteRunner(card))
        home.site.join("known", Endpoint("engine", url, "a"))
        for station in home.stations.values():
            station.faults.delay = RTT_S / 2
            house.fleet.join("known", station.endpoint("known"))

        async def strike(region: str) -> None:
            for name, station in home.stations.items():
                if name != region and not station.listening:
                    await home.revive(name)
                station.faults.silent = fault == "silence" and name == region
            if fault == "kill":
                await home.stations[region].kill()

        said = [{"role": "user", "content": " ".join(f"word{n}" for n in range(PROMPT - 1))}]
        headers = {"authorization": f"Bearer {SECRET}"}
        async with httpx.AsyncClient(base_url=house.url, headers=headers, timeout=120) as http:
            yield Cloud(http, strike, {"model": "known", "messages": said})
        await home.close()


async def known_part(cuts: int, seed: int) -> dict:
    dice, result = random.Random(seed), {}
    plan = [(grade, "kill", cuts) for grade in GRADES] + [("exact", "silence", SILENCES)]
    for grade, fault, count in plan:
        async with known_regions(fault) as cloud:
            rows = []
            for number in range(count):
                at = dice.randint(8, 56)
                body = {**cloud.body, "max_tokens": at + TAIL, "seed": seed + number, "recovery": grade}
                seen = await ask(cloud, body, at)
                whole = seen.text == known_text(body)
                rows.append((seen.stall - seen.pace, known_cost(grade, at, seen.pace), whole))
            result[grade if fault == "kill" else f"{grade}, silent"] = summary(rows)
            print(f"known engine, {grade}, {fault}: {summary(rows)}", file=sys.stderr, flush=True)
    given = {"token_s": TOKEN_S, "prefill_s_per_token": PREFILL_S, "rtt_s": RTT_S, "prompt_tokens": PROMPT}
    return {"given": given, "grades": result}


def known_text(body: dict) -> str:
    return "".join(map(known.word, known.answer(body)))


def known_cost(grade: str, at: int, token_s: float) -> float:
    """RTT + prefill + regeneration, in seconds. A standby has done all of that already."""
    regeneration = at * token_s if grade == "exact" else 0.0
    prefill = PREFILL_S * (PROMPT + (at if grade == "fast" else 0))
    return 0.0 if grade == "hot" else RTT_S + prefill + regeneration


def summary(rows: list[tuple[float, float, bool | None]]) -> dict:
    """`rows`: added stall, the sum of its parts, and whether the text was the unbroken one (None: not comparable)."""
    stalls = sorted(max(0.0, stall) for stall, _, _ in rows)
    sums = sorted(cost for _, cost, _ in rows)
    over = sorted(stall - cost for stall, cost, _ in rows)
    told = {"cuts": len(rows), "equal": sum(bool(equal) for _, _, equal in rows)}
    shown = {"added_stall_ms": stalls, "rtt_prefill_regeneration_ms": sums, "difference_ms": over}
    return told | {name: {"p50": ms(values, 50), "p99": ms(values, 99)} for name, values in shown.items()}


def ms(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1] * 1000, 1)


@contextlib.asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[Cloud]:
    """A real cloud with the catalogue's latency, its region killed by drills."""
    cloud = await asyncio.to_thread(start, folder, "--wan", "--models", MODEL, "--regions", ",".join(SERVED))
    headers = {"authorization": f"Bearer {cloud.key}"}
    try:
        async with httpx.AsyncClient(base_url=cloud.url, headers=headers, timeout=120) as http:

            async def strike(region: str) -> None:
                await known.drill(http, region, "kill", 0.3)

            said = [{"role": "user", "content": "Tell a long story about a lighthouse keeper and the sea."}]
            sampling = {"temperature": 0.8, "seed": 3, "logit_bias": {"2": -100}}
            yield Cloud(http, strike, {"model": MODEL, "messages": said, **sampling})
    finally:
        cloud.close()


async def embedded_part(folder: Path, cuts: int, seed: int) -> dict:
    """The parts of the sum are measured: the first token of unbroken answers, a token's time in the answer that is cut,
    and RTT of the region that took over from the catalogue."""
    dice, result = random.Random(seed), {}
    async with embedded(folder) as cloud:
        for _ in range(3):
            await ask(cloud, {**cloud.body, "max_tokens": 20})
        away = {id: row["rtt_ms"] / 1000 for id, row in (await known.regions(cloud.http)).items()}
        whole = [await ask(cloud, {**cloud.body, "max_tokens": 120}) for _ in range(3)]
        ledger = {row["id"]: row for row in await known.rows(cloud.http)}
        first_s = statistics.median(seen.at[0] - away[ledger[seen.id]["region"]] for seen in whole)
        for grade in GRADES:
            rows = []
            for _ in range(cuts):
                at = dice.randint(10, 100)
                body = {**cloud.body, "max_tokens": at + TAIL, "recovery": grade}
                seen = await ask(cloud, body, at)
                row = next(row for row in await known.rows(cloud.http) if row["id"] == seen.id)
                regeneration = at * seen.pace if grade == "exact" else 0.0
                cost = 0.0 if grade == "hot" else away[row["region"]] + first_s + regeneration
                rows.append((seen.stall - seen.pace, cost, whole[0].text.startswith(seen.text)))
                await asyncio.sleep(0.5)
            result[grade] = summary(rows)
            print(f"embedded engine, {grade}: {result[grade]}", file=sys.stderr, flush=True)
    return {"first_token_s": round(first_s, 4), "rtt_s": {id: round(away[id], 4) for id in SERVED}, "grades": result}
