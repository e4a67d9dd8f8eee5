"""The bodies of the admin API, as pydantic models."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from atoll.core.places import Residency, Unavailable
from atoll.core.types import NANO, Grade, Limits, Mismatch, Policy

Place = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class LimitsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")
    requests_per_minute: int | None = Field(None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(None, ge=1, le=10**12)
    budget_per_month: float | None = Field(None, ge=0, le=9_000_000, allow_inf_nan=False)

    def limits(self) -> Limits:
        budget = None if self.budget_per_month is None else round(self.budget_per_month * NANO)
        return Limits(self.requests_per_minute, self.tokens_per_minute, budget)


class ResidencyBody(BaseModel):
    """Region ids, zone sets or jurisdictions; an empty list means anywhere."""

    model_config = ConfigDict(extra="forbid")
    process_in: list[Place] = Field([], max_length=100)
    store_in: list[Place] = Field([], max_length=100)
    on_unavailable: Unavailable = "reject"

    def over(self, old: Residency) -> Residency:
        """`old` with the fields that were given."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        for axis in given.keys() & {"process_in", "store_in"}:
            given[axis] = tuple(dict.fromkeys(place.lower() for place in given[axis]))
        return replace(old, **given)


class PolicyBody(BaseModel):
    """How the key's requests are treated. What is not given stays as it is."""

    model_config = ConfigDict(extra="forbid")
    residency: ResidencyBody = ResidencyBody()
    recovery: Grade = "exact"
    on_mismatch: Mismatch = "fail"
    priority: int = Field(5, ge=0, le=9)

    def over(self, old: Policy) -> Policy:
        given = self.model_fields_set & {"recovery", "on_mismatch", "priority"}
        residency = self.residency.over(old.residency)
        return replace(old, residency=residency, **{name: getattr(self, name) for name in given})


class NewKey(PolicyBody):
    name: str = Field(min_length=1, max_length=100)
    role: Literal["admin", "user"] = "user"
    limits: LimitsBody = LimitsBody()
    expires_in_s: float | None = Field(None, gt=0, le=10 * 366 * 86400, allow_inf_nan=False)


class KeyChange(PolicyBody):
    name: str | None = Field(None, min_length=1, max_length=100)
    limits: LimitsBody | None = None


class NewModel(BaseModel):
    model_config = ConfigDict(extra="forbid")
    source: str = Field(min_length=1, max_length=2000)
    id: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")
    model: str | None = Field(None, min_length=1, max_length=200)
    key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    context: int | None = Field(None, ge=128, le=10_000_000)


class TierChange(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1)
