"""Calling what users write: one that fails is named, with what it did wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll.core.errors import InvalidRequest

if TYPE_CHECKING:
    from atoll.physical.sim.sim import Sim

FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def call(sim: Sim, kind: str, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(sim, *arguments)`. Raises InvalidRequest that names it where it raises."""
    try:
        return function(sim, *arguments)
    except FAULTS as error:
        raise fault(sim, kind, name, f"raised {type(error).__name__}: {error}") from error


def values(sim: Sim, kind: str, name: str, term: Callable[..., Any], dtypes: str = "fiub") -> np.ndarray:
    """What `term` gives, (n,), of a dtype whose kind is among `dtypes`."""
    given = call(sim, kind, name, term)
    if not isinstance(given, np.ndarray) or given.shape != (sim.n,):
        raise fault(sim, kind, name, f"gave {shape(given)} where an array ({sim.n},) is asked")
    if given.dtype.kind not in dtypes:
        raise fault(sim, kind, name, f"gave {given.dtype} where {'bool' if dtypes == 'b' else 'numbers'} is asked")
    return given


def rows(sim: Sim, name: str, term: Callable[..., Any]) -> np.ndarray:
    """What the observation `term` gives, as (n, size)."""
    given = call(sim, "observation", name, term)
    if not isinstance(given, np.ndarray) or given.ndim < 1 or len(given) != sim.n or given.dtype.kind not in "fiub":
        raise fault(sim, "observation", name, f"gave {shape(given)} where numbers ({sim.n}, ...) are asked")
    return given if given.ndim == 2 else given.reshape(sim.n, -1)


def shape(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"an array {given.shape} of {given.dtype}"
    return f"{type(given).__name__}"


def fault(sim: Sim, kind: str, name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{kind} '{name}' of task '{sim.task.name}' {what}", param=f"{kind}.{name}")
