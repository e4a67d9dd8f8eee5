"""How each gateway of the bench is started: one function a gateway, (upstream URL, folder, port) -> Launch."""

import dataclasses
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from common import BENCH, environment, free_port, pinned_versions
from mock_upstream import MODEL


@dataclasses.dataclass(frozen=True)
class Launch:
    """A gateway's command line and environment, the headers its clients send, and what it does per request."""

    argv: tuple[str | Path, ...]
    versions: dict[str, str]
    features_on: str
    features_off: str
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    ready: str = "/health"
    role: str = "gateway"
    requests_divisor: int = 1


ROUTER_OFF = "client authentication, quota, ledger, TLS"
LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: {upstream}/v1, api_key: sk-upstream}}
general_settings: {{master_key: {key}}}
"""


def start_floor(upstream: str, folder: Path, port: int) -> Launch:
    return Launch(
        (sys.executable, BENCH / "floor.py", str(port), upstream.rsplit(":", 1)[1]),
        versions={},
        features_on="HTTP framing, JSON parse of the request",
        features_off="everything a gateway does",
        role="floor (not a gateway)",
    )


def start_smg(upstream: str, folder: Path, port: int) -> Launch:
    return Launch(
        (environment("smg") / "bin" / "smg", "launch", *_router_flags(upstream, port)),
        versions=pinned_versions("smg", ["smg"]),
        features_on="round robin, retries, circuit breaker, Prometheus metrics",
        features_off=ROUTER_OFF,
    )


def start_vllm_router(upstream: str, folder: Path, port: int) -> Launch:
    return Launch(
        (environment("vllm-router") / "bin" / "vllm-router", *_router_flags(upstream, port)),
        versions=pinned_versions("vllm-router", ["vllm-router"]),
        features_on="round robin, retries, circuit breaker, Prometheus metrics",
        features_off=ROUTER_OFF,
    )


def start_sglang_router(upstream: str, folder: Path, port: int) -> Launch:
    python = environment("sglang-router") / "bin" / "python"
    return Launch(
        (python, "-m", "sglang_router.launch_router", *_router_flags(upstream, port)),
        versions=pinned_versions("sglang-router", ["sglang-router"]),
        features_on="round robin, retries, circuit breaker, Prometheus metrics",
        features_off=ROUTER_OFF,
    )


def _router_flags(upstream: str, port: int) -> tuple[str, ...]:
    listen = ("--host", "127.0.0.1", "--port", str(port))
    metrics = ("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()))
    return (*listen, *metrics, "--worker-urls", upstream, "--policy", "round_robin", "--log-level", "error")


def start_litellm(upstream: str, folder: Path, port: int) -> Launch:
    key = f"sk-{secrets.token_hex(24)}"
    config = folder / "litellm.yaml"
    config.write_text(LITELLM_CONFIG.format(model=MODEL, upstream=upstream, key=key))
    command = environment("litellm") / "bin" / "litellm"
    return Launch(
        (command, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        versions=pinned_versions("litellm", ["litellm"]),
        features_on="authentication by master key, routing, retries",
        features_off="database (so no keys, budgets or ledger), callbacks",
        env={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        headers={"authorization": f"Bearer {key}"},
        ready="/health/liveliness",
        requests_divisor=25,
    )


ATOLL_CARD = """\
id = "{model}"
title = "Mock upstream"
task = "chat"
engine = "remote"
context = 8192
max_output = 1024
[price]
input = 0.1
output = 0.2
[remote]
url = "{upstream}/v1"
model = "{model}"
"""
ATOLL_KEY = """\
import asyncio, dataclasses, sys
from atoll.core.places import Residency
from atoll.core.types import NANO, Limits, Policy
from atoll.gateway.admin import new_key
from atoll.store import open_store

async def main():
    store = await open_store(sys.argv[1])
    key, secret = new_key("bench", "user", Limits(10**8, 10**12, 10**6 * NANO))
    policy = Policy(Residency(process_in=("eu",), store_in=("eu",)))
    await store.keys.add(dataclasses.replace(key, policy=policy))
    await store.close()
    print(secret)

asyncio.run(main())
"""


def start_atoll(upstream: str, folder: Path, port: int) -> Launch:
    """A key with all three limits and a residency rule; every request is routed with its prefix, reserves, settles and
    is a row on disk before its last byte."""
    data = folder / "data"
    (data / "models").mkdir(parents=True)
    (data / "models" / f"{MODEL}.toml").write_text(ATOLL_CARD.format(model=MODEL, upstream=upstream))
    store = f"sqlite:///{data / 'atoll.db'}"
    command = (sys.executable, "-c", ATOLL_KEY, store)
    secret = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    options = ("--data", data, "--port", str(port), "--models", MODEL)
    return Launch(
        (sys.executable, "-m", "atoll.cli", "up", "--json", *options),
        versions={"atoll": "0.1.0"},
        features_on="keys, three limits and a residency rule a key, ledger in SQLite (fsync before the last byte),"
        " validation, routing by score with prefix affinity, circuit breaker, receipts, Prometheus metrics",
        features_off="TLS, OpenTelemetry",
        headers={"authorization": f"Bearer {secret}"},
        ready="/healthz",
    )


GATEWAYS: dict[str, Callable[[str, Path, int], Launch]] = {
    "atoll": start_atoll,
    "floor": start_floor,
    "vllm-router": start_vllm_router,
    "sglang-router": start_sglang_router,
    "smg": start_smg,
    "litellm": start_litellm,
}
