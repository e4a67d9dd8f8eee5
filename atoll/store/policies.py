"""A key's policy as JSON text. What is missing has its default; anything unknown is refused."""

from __future__ import annotations

from typing import Any, get_args

import orjson

from atoll.core.places import Residency, Unavailable
from atoll.core.types import Grade, Mismatch, Policy

CHOICES = {"recovery": get_args(Grade), "on_mismatch": get_args(Mismatch), "on_unavailable": get_args(Unavailable)}
PLACES = ("process_in", "store_in")


def policy_text(policy: Policy) -> str:
    return orjson.dumps(policy, option=orjson.OPT_SORT_KEYS).decode()


def read_policy(text: str) -> Policy:
    """Raises ValueError that names the field and the rule."""
    fields = _fields("the policy", orjson.loads(text), {"residency", "recovery", "on_mismatch", "priority"})
    residency = _fields("residency", fields.pop("residency", {}), {*PLACES, "on_unavailable"})
    for name in PLACES:
        if name in residency:
            residency[name] = _names(name, residency[name])
    for name, allowed in CHOICES.items():
        value = (residency if name == "on_unavailable" else fields).get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    priority = fields.get("priority", 0)
    if type(priority) is not int or not 0 <= priority <= 9:
        raise ValueError(f"priority must be a whole number from 0 to 9, not {priority!r}")
    return Policy(Residency(**residency), **fields)


def _fields(what: str, value: Any, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or not value.keys() <= known:
        raise ValueError(f"{what} must be an object with only {', '.join(sorted(known))}")
    return value


def _names(field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{field} must be a list of names")
    return tuple(value)
