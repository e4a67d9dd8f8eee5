"""Proof of where requests were processed and stored: receipts of single requests, and the ledger replayed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.core.errors import Conflict, NotFound
from atoll.core.residency import Violation, violations
from atoll.core.types import Entry
from atoll.gateway.admin import Admin, following, page_after, reply
from atoll.gateway.receipts import Signer

PAGE = 1000
ROWS = 100_000
SHOWN = 1000


@dataclass(slots=True)
class Audit:
    admin: Admin
    signer: Signer

    def routes(self) -> list[Route]:
        table: list[tuple[str, Any]] = [
            ("/atoll/v1/receipts/key", self.public_key),
            ("/atoll/v1/requests/{id}/receipt", self.receipt),
            ("/atoll/v1/audit", self.audit),
        ]
        return [Route(path, handler, methods=["GET"]) for path, handler in table]

    async def public_key(self, request: Request) -> Response:
        return reply(self.signer.public_key())

    async def receipt(self, request: Request) -> Response:
        key, id = self.admin.caller(request), request.path_params["id"]
        exchange = self.admin.gateway.exchange
        entry = await exchange.ledger.entry(id)
        if entry is None or (key.role != "admin" and entry.key_id != key.id):
            raise NotFound(f"there is no request '{id}'", param="id", code="request_not_found")
        if entry.status == "open":
            raise Conflict(f"the request '{id}' has not ended yet; its receipt is made when it has")
        card = exchange.models.cards().get(entry.model)
        return reply(self.signer.sign(entry, card.digest if card else ""))

    async def audit(self, request: Request) -> Response:
        """Up to `ROWS` rows, newest first; `next` tells where the following call goes on, null at the end."""
        self.admin.caller(request, admin=True)
        after: dict[str, Any] | None = page_after(request)
        rows = judged = found = 0
        shown: list[Violation] = []
        while after is not None and rows < ROWS:
            page = await self.admin.gateway.exchange.ledger.entries(limit=PAGE, **after)
            broken = violations(page, self.admin.gateway.exchange.placing.regions)
            rows, judged, found = rows + len(page), judged + sum(map(_tells, page)), found + len(broken)
            shown += broken[: SHOWN - len(shown)]
            after = following(page[-1]) if len(page) == PAGE else None
        result = {"rows": rows, "judged": judged, "violations": found, "data": [asdict(v) for v in shown]}
        return reply({**result, "next": after})


def _tells(entry: Entry) -> bool:
    """Rows older than residency tell nothing of it and cannot be judged."""
    return bool(entry.rule or entry.path or entry.stored_in)
