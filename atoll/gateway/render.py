"""The nouns as JSON objects of the public API. Money is shown in US dollars; inside it is nanodollars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atoll.core.cards import Card
from atoll.core.meter import dollars
from atoll.core.types import Entry, Key, Policy


def render_key(key: Key, spent: int) -> dict[str, Any]:
    limits = key.limits
    budget = limits.budget_per_month
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "hint": key.hint,
        "limits": {
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "budget_per_month": None if budget is None else dollars(budget),
        },
        **render_policy(key.policy),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "spent_this_month": dollars(spent),
    }


def render_policy(policy: Policy) -> dict[str, Any]:
    """The fields of `policy` as a key shows and takes them."""
    residency = policy.residency
    return {
        "residency": {
            "process_in": list(residency.process_in),
            "store_in": list(residency.store_in),
            "on_unavailable": residency.on_unavailable,
        },
        "recovery": policy.recovery,
        "on_mismatch": policy.on_mismatch,
        "priority": policy.priority,
    }


def render_entry(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "key_id": entry.key_id,
        "model": entry.model,
        "region": entry.region,
        "route": entry.route,
        "created_at": entry.created_at,
        "status": entry.status,
        "input": entry.usage.input,
        "output": entry.usage.output,
        "cached": entry.usage.cached,
        "cost": dollars(entry.cost),
        "http_status": entry.http_status,
        "first_token_ms": entry.first_token_ms,
        "duration_ms": entry.duration_ms,
        "error": entry.error,
        "path": entry.path,
        "stored_in": entry.stored_in,
        "rule": entry.rule,
        "grade": entry.grade,
    }


def render_model(card: Card, told: Mapping[str, Any], created: int, tier: str | None = None) -> dict[str, Any]:
    """An OpenAI model object with the card's facts beside it, and what the library told of it. For a tier, `root` is
    the card behind it."""
    price = card.price
    return {
        "id": tier or card.id,
        "object": "model",
        "created": created,
        "owned_by": "atoll",
        "root": card.id,
        "tier": tier,
        "title": card.title,
        "note": card.note,
        "task": card.task,
        "input": card.input,
        "output": card.output,
        "context": card.context,
        "max_output": card.max_output,
        "tools": card.tools,
        "thinking": card.thinking,
        "json_schema": card.json_schema,
        "unit": card.unit,
        "price": {"input": price.input / 1000, "output": price.output / 1000, "cached": price.cached / 1000},
        "licence": card.licence,
        "jurisdiction": card.jurisdiction,
        "parameters": card.parameters,
        "voices": card.voices,
        "engine": card.engine,
        "state": told.get("state", "ready"),
        "removable": tier is None and bool(told.get("removable")),
    }
