"""The stage `serve`: a policy and the report of the gate that it passed in, a service out.

A service is `service.json`: under which name which policy is to be served, with which report. A cloud that runs on the
same data folder puts it into service (`intake`); elsewhere, `atoll policies promote NAME DIGEST` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from atoll.core.errors import InvalidRequest
from atoll.core.runs import Reporter, Stage
from atoll.core.session import rules_of
from atoll.physical.policy import load_policy
from atoll.physical.serve.passed import check_floor, check_gate
from atoll.physical.serve.record import NAME, ROBOT, fingerprint, write_whole


@dataclass(frozen=True, slots=True)
class Config:
    """`name`: what the policy is called as a model."""

    name: str = ROBOT

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InvalidRequest("'name' must be lower-case letters, digits, '.', '_' or '-'", param="name")


def run(config: Config, inputs: Mapping[str, Path], out: Path, report: Reporter) -> None:
    """Raises InvalidRequest where the policy has not passed, or cannot be served within its limits."""
    report.progress(0, 1)
    policy, verdict = fingerprint(inputs["policy"]), fingerprint(inputs["report"])
    check_floor(check_gate(inputs["report"], policy))
    rules_of(load_policy(inputs["policy"]).manifest)
    told = {"name": config.name, "policy": policy, "report": verdict}
    write_whole(out / "service.json", json.dumps(told, indent=1, sort_keys=True).encode() + b"\n")
    report.progress(1, 1)


STAGE = Stage(
    "serve", "put a policy that passed its gate into service", Config, run, makes="service", takes=("policy", "report")
)
