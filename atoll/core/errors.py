"""Every error that Atoll raises on purpose.

AtollError
├── InvalidRequest           400  the request breaks a rule; `param` names the field
│   ├── ContextOverflow      400  prompt plus answer do not fit the context
│   └── Unsupported          400  a field or medium that this model cannot honour
├── Unauthenticated          401
├── Forbidden                403
├── NotFound                 404  unknown model, key, response
├── Conflict                 409  the thing exists, or changed meanwhile
├── TooLarge                 413
├── QuotaExceeded            429  requests, tokens or budget; carries `retry_after`
├── Unplaceable              503  no region that the residency rule allows can serve now
├── Overloaded               503  queues are full; carries `retry_after`
├── SimulationFailed         422  the physics of a task broke down: its model, time step or actions are at fault
├── EngineFailed             502  an engine died, or answered with garbage
├── DeadlineExceeded         504
└── SetupError               500  this installation cannot do it; the message says what to do next
    └── NotInstalled         501  an extra is missing; the message says how to install it

Each has an HTTP `status`, a machine-readable `code`, and says whether the same request may succeed
later (`retryable`). `gateway/errors.py` maps them to the body shape of the API that was called.
"""

from __future__ import annotations

from typing import Any


class AtollError(Exception):
    status = 500
    code = "internal_error"
    retryable = False

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code:
            self.code = code


class InvalidRequest(AtollError):
    status, code = 400, "invalid_request"


class ContextOverflow(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, counted: int, limit: int, *, param: str = "messages"):
        super().__init__(
            f"This model's context is {limit} tokens, but the request needs {counted}. "
            "Shorten the prompt or lower max_tokens.",
            param=param,
        )
        self.counted, self.limit = counted, limit


class Unsupported(InvalidRequest):
    code = "unsupported_parameter"


class Unauthenticated(AtollError):
    status, code = 401, "invalid_api_key"


class Forbidden(AtollError):
    status, code = 403, "permission_denied"


class NotFound(AtollError):
    status, code = 404, "not_found"


class Conflict(AtollError):
    status, code = 409, "conflict"


class TooLarge(AtollError):
    status, code = 413, "request_too_large"


class QuotaExceeded(AtollError):
    status, code, retryable = 429, "rate_limit_exceeded", True


class Unplaceable(AtollError):
    status, code, retryable = 503, "residency_unavailable", True


class Overloaded(AtollError):
    status, code, retryable = 503, "overloaded", True


class SimulationFailed(AtollError):
    status, code = 422, "simulation_failed"


class EngineFailed(AtollError):
    status, code, retryable = 502, "engine_failed", True


class DeadlineExceeded(AtollError):
    status, code, retryable = 504, "deadline_exceeded", True


class SetupError(AtollError):
    code = "setup_error"


class NotInstalled(SetupError):
    status, code = 501, "not_installed"


def to_wire(error: AtollError) -> dict[str, Any]:
    """An error as a station reports it to its gateway; `from_wire` makes the same error of it."""
    told = {"message": error.message, "type": type(error).__name__, "code": error.code, "status": error.status}
    return told | {"param": error.param, "retry_after": error.retry_after}


def from_wire(told: dict[str, Any]) -> AtollError:
    """Unknown kinds become EngineFailed: what a station cannot name, it did not do on purpose."""
    kinds = {kind.__name__: kind for kind in _kinds(AtollError)}
    kind = kinds.get(str(told.get("type")), EngineFailed)
    error = kind.__new__(kind)
    after = told.get("retry_after")
    AtollError.__init__(
        error,
        str(told.get("message") or "the station reported an error"),
        param=str(told["param"]) if told.get("param") else None,
        code=str(told["code"]) if told.get("code") else None,
        retry_after=float(after) if isinstance(after, int | float) else None,
    )
    return error


def _kinds(kind: type[AtollError]) -> list[type[AtollError]]:
    return [kind, *(k for sub in kind.__subclasses__() for k in _kinds(sub))]
