"""How each gateway of the bench is started: one function a gateway, (upstream URL, folder, port) -> Launch."""

import dataclasses
import secrets
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


GATEWAYS: dict[str, Callable[[str, Path, int], Launch]] = {
    "floor": start_floor,
    "vllm-router": start_vllm_router,
    "sglang-router": start_sglang_router,
    "smg": start_smg,
    "litellm": start_litellm,
}
