"""The long runs of bench/resume: a cut at every token of an answer, and regions that die at random for minutes."""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import cuts
import httpx
import known_cloud as known
import openai
from conftest import start
from mischief import EU, OTHERS, TEN, Load, Mischief, failing, stalls

TOKEN_S = 0.05
RULE = "process_in=eu"


def sweep_own(folder: Path, step: int) -> dict:
    """`sweep` on a cloud with three regions, for this once."""
    cloud = start(folder, "--models", cuts.ASK["model"], "--regions", cuts.REGIONS)
    try:
        return sweep(cloud.url, cloud.key, step)
    finally:
        cloud.close()


def sweep(url: str, key: str, step: int) -> dict:
    """The serving region is killed at token 0, `step`, 2 `step`, ... of a 200-token answer of the embedded model;
    AssertionError at the first that is not the unbroken one."""
    headers, result = {"authorization": f"Bearer {key}"}, {}
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120) as sdk,
        httpx.Client(base_url=url, headers=headers, timeout=60) as api,
    ):
        for how in cuts.SAMPLINGS:
            began, unbroken = time.monotonic(), cuts.told(sdk, api, how, None).text
            positions = range(0, cuts.TOKENS + 1, step)
            for at in positions:
                cuts.check_cut(api, cuts.told(sdk, api, how, at), unbroken, at)
                print(f"\r{how}: cut at {at}, byte-equal", end="", file=sys.stderr, flush=True)
            took = round(time.monotonic() - began, 1)
            result[how] = {"cuts": len(positions), "byte_equal": len(positions), "seconds": took}
            print(f"\n{how}: {result[how]}", file=sys.stderr)
    return {"tokens": cuts.TOKENS, "step": step, **result}


async def among(folder: Path, step: int, tokens: int = 60, others: int = 32) -> dict:
    """One of 33 streams of known tokens loses its region at token 0, `step`, 2 `step`, ...; every token of every stream
    is compared."""
    flags, environment = known.options(cuts.AMONG)
    with known.engine(folder, TOKEN_S):
        cloud = await asyncio.to_thread(start, folder, *flags, environment=environment)
        try:
            async with known.client(cloud.url, cloud.key) as http:
                seen, positions = [], range(0, tokens + 1, step)
                for at in positions:
                    await known.all_serve(http, cuts.AMONG)
                    seen += await cuts.cut_among_others(http, at, others, tokens)
                    print(f"\rcut at {at} among {others} others", end="", file=sys.stderr, flush=True)
                ledger = await known.rows(http)
                recovered = sum(bool(row["grade"]) for row in ledger)
                told = {"tokens": tokens, "step": step, "cuts": len(positions), "streams": len(seen)}
                return {**told, "recovered": recovered, **verdict(seen, ledger)}
        finally:
            cloud.close()


@contextlib.asynccontextmanager
async def ten_regions(folder: Path) -> AsyncIterator[tuple[int, httpx.AsyncClient]]:
    flags, environment = known.options(TEN)
    with known.engine(folder, TOKEN_S):
        cloud = await asyncio.to_thread(start, folder, *flags, environment=environment)
        try:
            async with known.client(cloud.url, cloud.key) as http:
                await known.all_serve(http, TEN)
                yield cloud.process.pid, http
        finally:
            cloud.close()


async def chaos(folder: Path, seconds: float, seed: int) -> dict:
    """Fifty clients, ten region processes that are killed, stopped and cut off at random."""
    async with ten_regions(folder) as (pid, http):
        mischief = Mischief(http, pid, TEN, seed)
        seen, _ = await asyncio.gather(Load(http).run(seconds), mischief.run(seconds))
        tolds = [told for told, _ in seen]
        ledger = await known.rows(http)
        return {"seconds": seconds, "faults": mischief.done, **verdict(tolds, ledger), **stalls(tolds, ledger)}


def verdict(tolds: list[known.Told], ledger: list[dict]) -> dict:
    """What was lost, changed or charged twice. What is refused with an error counts as lost."""
    ids = [row["id"] for row in ledger]
    wrong = [told for told in tolds if not told.right]
    for told in wrong[:3]:
        print(f"not right: {told}", file=sys.stderr)
    with contextlib.suppress(AssertionError):
        known.check_books([told for told in tolds if told.right], [r for r in ledger if r["id"] not in _ids(wrong)])
        return {
            "lost_or_changed": len(wrong),
            "rows": len(ids),
            "rows_twice": len(ids) - len(set(ids)),
            "books": "right",
        }
    return {"lost_or_changed": len(wrong), "rows": len(ids), "rows_twice": len(ids) - len(set(ids)), "books": "wrong"}


def _ids(tolds: list[known.Told]) -> set[str]:
    return {told.id for told in tolds}


async def chaos_with_rule(folder: Path, seconds: float, seed: int) -> dict:
    """Half of the keys are bound to the EU, where one region crashes again and again, one is stopped and one lives."""
    async with ten_regions(folder) as (pid, http):
        headers = [await key(http, residency={"process_in": ["eu"]}), await key(http)]
        mischief = Mischief(http, pid, OTHERS, seed, most=3)
        running = asyncio.create_task(Load(http, headers=headers).run(seconds))
        await asyncio.sleep(2)
        async with failing(pid, crashing=EU[:1], frozen=EU[1:2]):
            seen, _ = await asyncio.gather(running, mischief.run(seconds - 5))
        tolds = [told for told, _ in seen]
        ledger = await known.rows(http)
        audit = (await http.get("/atoll/v1/audit")).raise_for_status().json()
        bound = [row for row in ledger if row["rule"] == RULE]
        elsewhere = [row for row in bound if {region for region, _ in known.steps(row)} - set(EU)]
        told = {"rows_bound_to_eu": len(bound), "of_them_made_elsewhere": len(elsewhere)}
        audited = {name: audit[name] for name in ("judged", "violations")}
        books = {**verdict(tolds, ledger), **stalls(tolds, ledger)}
        return {"seconds": seconds, "faults": mischief.done, **told, "audit": audited, **books}


async def none_left(folder: Path, seconds: float, _seed: int) -> dict:
    """Half of the keys are bound to the EU, all of whose regions fail: one crashes again and again, two stand still."""
    async with ten_regions(folder) as (pid, http):
        headers = [await key(http, residency={"process_in": ["eu"]}), await key(http)]
        async with failing(pid, crashing=EU[:1], frozen=EU[1:]):
            await asyncio.sleep(1)
            seen = await Load(http, headers=headers).run(seconds)
        ledger = await known.rows(http)
        audit = (await http.get("/atoll/v1/audit")).raise_for_status().json()
        bound = [told for told, sent in seen if sent is headers[0]]
        refusals = Counter(f"{told.status} {(told.error or {}).get('code')}" for told in bound)
        return {
            "seconds": seconds,
            "bound_to_eu": {"requests": len(bound), "with_text": sum(bool(t.text) for t in bound), "replies": refusals},
            "others": verdict([told for told, sent in seen if sent is headers[1]], _unruled(ledger)),
            "audit": {name: audit[name] for name in ("judged", "violations")},
        }


def _unruled(ledger: list[dict]) -> list[dict]:
    return [row for row in ledger if row["rule"] != RULE]


async def key(http: httpx.AsyncClient, **policy: object) -> dict[str, str]:
    reply = await http.post("/atoll/v1/keys", json={"name": "bench", **policy})
    return {"authorization": f"Bearer {reply.raise_for_status().json()['secret']}"}
