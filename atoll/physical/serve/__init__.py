"""Policies as a service: what is promoted (`record`, `service`), sessions over a WebSocket (`server`, `line`, `wire`),
adapters for other protocols, and the policy as a tool. What may move is decided in `core.safety` and `core.session`.

The gateway starts with these modules: what needs the extra `physical` is imported when a policy is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atoll.physical.serve.server import Endpoint, Identify
    from atoll.physical.serve.service import Service


def endpoints(service: Service, identify: Identify) -> dict[str, Endpoint]:
    """What answers at `.../policies/<name>/act`, and in other protocols."""
    from atoll.physical.serve.adapters.openpi import OpenPi
    from atoll.physical.serve.server import Endpoint

    return {"act": Endpoint(service, identify), "openpi": Endpoint(service, identify, OpenPi)}
