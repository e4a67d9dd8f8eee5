"""How many of N streams each gateway delivers whole when the engine behind it dies in the middle of every one of them.

Two engines stand behind each gateway. The one that is asked for a stream drops the connection after 1 to 59 of 60
tokens; asked again for the same stream, either engine answers in full. Whole: every token of the unbroken answer, once,
in order, and an end."""

import asyncio
import collections
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import known_cloud as known
from common import BENCH, environment, free_port, pinned_versions, process, wait_ready
from conftest import start
from dying_engine import TOKENS, dies_after
from gateways import Launch
from known_engine import word

CORE = 0
AT_ONCE = 4
RETRIES = "round robin over both engines, retries, no circuit breaker"
LITELLM = """\
model_list:
  - model_name: known
    litellm_params: {{model: openai/known, api_base: {one}/v1, api_key: sk-upstream}}
  - model_name: spare
    litellm_params: {{model: openai/known, api_base: {two}/v1, api_key: sk-upstream}}
router_settings: {{num_retries: 2, disable_cooldowns: true, fallbacks: [{{known: [spare]}}]}}
general_settings: {{master_key: {key}}}
"""


def start_litellm(urls: list[str], folder: Path, port: int) -> Launch:
    key, config = f"sk-{secrets.token_hex(24)}", folder / "litellm.yaml"
    config.write_text(LITELLM.format(one=urls[0], two=urls[1], key=key))
    command = environment("litellm") / "bin" / "litellm"
    return Launch(
        (command, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        versions=pinned_versions("litellm", ["litellm"]),
        features_on="a fallback to the second engine, two retries, no cooldown",
        features_off="",
        env={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        headers={"authorization": f"Bearer {key}"},
        ready="/health/liveliness",
    )


def start_router(name: str) -> Callable[[list[str], Path, int], Launch]:
    def launch(urls: list[str], folder: Path, port: int) -> Launch:
        home = environment(name) / "bin"
        commands = {
            "smg": (home / "smg", "launch"),
            "vllm-router": (home / "vllm-router",),
            "sglang-router": (home / "python", "-m", "sglang_router.launch_router"),
        }
        listen = ("--host", "127.0.0.1", "--port", str(port))
        metrics = ("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()))
        flags = ("--policy", "round_robin", "--disable-circuit-breaker", "--log-level", "error")
        argv = (*commands[name], *listen, *metrics, "--worker-urls", *urls, *flags)
        return Launch(argv, pinned_versions(name, [name]), features_on=RETRIES, features_off="")

    return launch


PEERS = {name: start_router(name) for name in ("smg", "vllm-router", "sglang-router")} | {"litellm": start_litellm}


@contextlib.contextmanager
def engines(folder: Path) -> Iterator[list[str]]:
    ports, log = [free_port(), free_port()], folder / "engines.log"
    argv = (sys.executable, BENCH / "dying_engine.py", *map(str, ports))
    with process(argv, CORE, log) as child:
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            wait_ready(f"{url}/health", child, log)
        yield urls


async def deliver(url: str, headers: dict[str, str], count: int) -> dict:
    """`count` streams, `AT_ONCE` at a time; what became of them."""
    outcomes: collections.Counter[str] = collections.Counter()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with gate:
            outcomes[await outcome(http, seed)] += 1

    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
        await asyncio.gather(*(one(seed) for seed in range(1, count + 1)))
    return dict(outcomes)


async def outcome(http: httpx.AsyncClient, seed: int) -> str:
    """`whole`; `changed`: it ended as if whole, but it is not what the engine says; `broken`: cut off, or an error."""
    body, text, ended = known.asked(seed, TOKENS, temperature=0.0, stream=True), "", False
    try:
        async with http.stream("POST", known.CHAT, json=body) as reply:
            if reply.status_code != 200:
                return "broken"
            async for line in reply.aiter_lines():
                ended = ended or line == "data: [DONE]"
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return "broken"
                    text += "".join(c["delta"].get("content") or "" for c in event.get("choices", ()))
    except httpx.HTTPError:
        return "broken"
    if text == "".join(map(word, known.answer(body))):
        return "whole"
    return "changed" if ended else "broken"


def peer(name: str, folder: Path, count: int) -> dict:
    folder.mkdir()
    port, log = free_port(), folder / f"{name}.log"
    with engines(folder) as urls:
        launch = PEERS[name](urls, folder, port)
        with process(launch.argv, CORE, log, env=os.environ | launch.env, cwd=folder) as child:
            url = f"http://127.0.0.1:{port}"
            wait_ready(url + launch.ready, child, log)
            told = asyncio.run(relayed(url, launch.headers, urls[0], count))
    return {"versions": launch.versions, "on": launch.features_on, **told}


async def relayed(url: str, headers: dict[str, str], engine: str, count: int) -> dict:
    """Warmed up with a stream of its own, which may break."""
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http:
        for seed in range(10_001, 10_030):
            if await outcome(http, seed) == "whole" or await was_cut(engine, seed):
                break
            await asyncio.sleep(0.5)
    outcomes = await deliver(url, headers, count)
    cut = [await was_cut(engine, seed) for seed in range(1, count + 1)]
    again = await deliver(url, headers, count)
    told = {"streams": count, "cut": sum(cut), "whole": outcomes.get("whole", 0), "outcomes": outcomes}
    return told | {"whole_when_asked_again": again.get("whole", 0)}


async def was_cut(engine: str, seed: int) -> bool:
    async with httpx.AsyncClient(base_url=engine) as http:
        return seed in (await http.get("/cut")).json()["cut"]


def atoll(folder: Path, count: int) -> dict:
    """Two regions, a process each, before one engine that dies as the peers' do."""
    flags, told = known.options(("eu-central-1", "us-east-1"))
    folder.mkdir()
    with engines(folder) as urls:
        (folder / "models").mkdir()
        (folder / "models" / "known.toml").write_text(known.CARD.format(url=urls[0], digest="ab" * 32))
        cloud = start(folder, *flags, environment=told)
        try:
            headers = {"authorization": f"Bearer {cloud.key}"}
            told = asyncio.run(relayed(cloud.url, headers, urls[0], count))
        finally:
            cloud.close()
    return {"versions": {"atoll": "0.1.0"}, "on": "the grade exact, two regions, circuit breaker, ledger", **told}


def measure(folder: Path, count: int) -> dict:
    rows = {"atoll": atoll(folder / "atoll", count)}
    for name in PEERS:
        rows[name] = peer(name, folder / name, count)
        print(f"{name}: {rows[name]['outcomes']}", file=sys.stderr, flush=True)
    cuts = sorted(dies_after(seed) for seed in range(1, count + 1))
    return {"tokens": TOKENS, "cut_after": cuts, "gateways": rows}
