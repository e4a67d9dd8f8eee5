"""What the gate's report must say before its policy is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll.core.errors import Conflict, InvalidRequest
from atoll.core.gate import FLOOR, Evidence, Rule, Verdict, decide, evidence_of

PARTS = ("decision", "policy", "incumbent", "task", "checks", "evidence", "rule", "config", "mujoco")
CODE = "gate_not_passed"

Told = Mapping[str, Any]


def check_gate(report: Path, version: str) -> Told:
    """What `report.json` tells. Raises InvalidRequest unless it is whole, and what it has measured of the policy
    `version` passes by its own rule."""
    try:
        told = json.loads((report / "report.json").read_bytes())
    except (OSError, ValueError):
        raise InvalidRequest("'report' has no report.json that can be read", param="report") from None
    if not isinstance(told, Mapping) or told.get("policy") != version:
        raise InvalidRequest(f"the report is not about this policy, {version[:12]}", param="report")
    if told.get("decision") != "pass":
        raise _refused(f"its gate said '{told.get('decision')}'; no policy is served that has not passed")
    evidence, rule = _measured(told)
    if not (verdict := decide(evidence, rule)).passed:
        raise _refused(f"its gate said 'pass', but its own evidence says otherwise: {_why(verdict)}")
    return told


def check_floor(told: Told) -> None:
    """Raises InvalidRequest unless the evidence is enough for any policy, whatever its gate asked for."""
    evidence, _ = _measured(told)
    if not (evidence.variants and any(level <= 1 for level in evidence.stress)):
        raise _refused("its gate did not try other solvers, or no randomised dynamics up to level 1 ('stress')")
    if not (verdict := decide(evidence, FLOOR)).passed:
        raise _refused(f"its gate asked for less than every policy must show: {_why(verdict)}")


def check_compared(told: Told, against: str | None) -> None:
    """Raises Conflict unless the gate compared the policy with `against`, the version that it replaces."""
    if against is None or against in (told["policy"], told["incumbent"]):
        return
    judge = f"atoll validate --from policy={told['policy'][:12]} --from incumbent={against[:12]}"
    message = f"the report does not compare with version {against[:12]}, which is in service"
    message += f": judge it anew with '{judge}', or promote it with --uncompared"
    raise Conflict(message, param="report", code="not_compared")


def _measured(told: Told) -> tuple[Evidence, Rule]:
    """Raises InvalidRequest where a part is missing or not what a gate writes."""
    if missing := [part for part in PARTS if part not in told]:
        message = f"report.json lacks '{missing[0]}', which 'atoll validate' writes: judge the policy with it"
        raise InvalidRequest(message, param="report")
    try:
        return evidence_of(told["evidence"]), Rule(**told["rule"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        message = f"report.json does not tell what 'atoll validate' measures ({error!r}): judge the policy with it"
        raise InvalidRequest(message, param="report") from None


def _why(verdict: Verdict) -> str:
    return "; ".join(f"{c.name}: {c.why} (limit {c.limit:g})" for c in verdict.checks if not c.passed)


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"this policy may not be served: {why}", param="report", code=CODE)
