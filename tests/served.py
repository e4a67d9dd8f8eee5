"""A service with a small policy, shared by the tests of serving."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from support import OTHER, OTHER_SECRET, SECRET, USER, serving

from atoll.core.cards import Card
from atoll.core.errors import NotFound, Unauthenticated
from atoll.core.gate import Evidence, Rule, Trials, decide, plain
from atoll.core.manifest import ActionLimits, Channel, Manifest
from atoll.core.types import Key
from atoll.physical.policy import MlpPolicy, save_policy
from atoll.physical.serve import endpoints
from atoll.physical.serve.record import fingerprint
from atoll.physical.serve.service import Service

ADMIN = replace(USER, id="key_admin", role="admin")
ADMIN_SECRET = "sk-atoll-admin"
KEYS = {SECRET: USER, OTHER_SECRET: OTHER, ADMIN_SECRET: ADMIN}

LIMITS = ActionLimits(low=(-1.0, -1.0), high=(1.0, 1.0), velocity=(2.0, 2.0))
MANIFEST = Manifest(
    task="two-joints",
    kind="mlp",
    rate_hz=50.0,
    observation=(Channel("joints", 2, "rad"), Channel("goal", 2, "rad", -2.0, 2.0)),
    action=(Channel("joints", 2, "rad"),),
    limits=LIMITS,
)


def mlp(manifest: Manifest = MANIFEST, gain: float = 1.0) -> MlpPolicy:
    """Goes to `gain` times the goal at once: limits are for the server to keep."""
    seen, given = manifest.observation_size, manifest.action_size * manifest.chunk
    weight = np.zeros((seen, given), np.float32)
    for i in range(given):
        weight[2 + i % 2, i] = gain
    ones, zeros = np.ones, np.zeros
    weights = {"0.weight": weight, "0.bias": zeros(given, np.float32)}
    weights |= {"observation.mean": zeros(seen, np.float32), "observation.scale": ones(seen, np.float32)}
    weights |= {"action.shift": zeros(2, np.float32), "action.scale": ones(2, np.float32)}
    return MlpPolicy(replace(manifest, network={"squash": "none"}), weights)


def gated(
    folder: Path, policy: Any = None, decision: str = "pass", seed: int = 1, incumbent: str | Path | None = None
) -> tuple[str, str]:
    """A policy on disk and the report of its gate: two folders. `incumbent`: what it was compared with."""
    if isinstance(incumbent, Path):
        incumbent = fingerprint(incumbent)
    save_policy(policy or mlp(), folder / "policy")
    won = Trials(100 if decision == "pass" else 0, 100)
    before = Trials(98, 100) if incumbent else None
    evidence = Evidence(won, {1.0: won}, {"other": won}, before, (), 0, Trials(0, 9))
    verdict = decide(evidence, Rule())
    report = {
        "decision": "pass" if verdict.passed else "fail",
        "policy": fingerprint(folder / "policy"),
        "incumbent": incumbent,
        "task": MANIFEST.task,
        "checks": [check._asdict() for check in verdict.checks],
        "evidence": plain(evidence),
        "rule": asdict(Rule()),
        "config": {"seed": seed},
        "mujoco": "3",
    }
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report/report.json").write_text(json.dumps(report))
    return str(folder / "policy"), str(folder / "report")


def identify(secret: str | None) -> Key:
    if secret not in KEYS:
        raise Unauthenticated("the API key is unknown, expired or revoked")
    return KEYS[secret]


def nowhere(digest: str) -> Path:
    raise NotFound(f"there is no artifact '{digest}' here")


@dataclass
class Shelf:
    """Models by name."""

    known: dict[str, Card] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)

    def cards(self) -> dict[str, Card]:
        return self.known

    def offer(self, card: Card) -> None:
        self.known[card.id] = card


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def service(root: Path) -> AsyncIterator[Service]:
    made = Service(root, Shelf(), nowhere)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def policies(folder: Path, policy: Any = None) -> AsyncIterator[tuple[Service, str]]:
    """A service with the policy `arm`, and the address of its WebSocket."""
    async with service(folder / "data") as made:
        await made.promote("arm", *gated(folder, policy), ADMIN)
        sockets = endpoints(made, identify).items()
        app = Starlette(routes=[WebSocketRoute(f"/atoll/v1/policies/{{id}}/{name}", end) for name, end in sockets])
        async with serving(app) as url:
            yield made, f"ws{url[4:]}/atoll/v1/policies/arm/act"
