"""What a kind of database must offer. SQLite and PostgreSQL each implement it in a file of their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from atoll.core.errors import AtollError


class Backend(Protocol):
    """One database: connections to it, the claim under which this process writes, its error messages. `gateway` is
    the identity of this process, new with every start; `shared` tells whether others may write beside it; `journal` is
    where rows wait on their way into it, if that spares anything."""

    engine: Engine
    gateway: str
    shared: bool
    journal: Path | None
    placeholder: str

    def claim(self, connection: Connection) -> None:
        """Make `connection` the one that writes, until it ends. Raises SetupError naming the holder when another
        process writes to a database that is not shared."""
        ...

    def claimed(self, connection: Connection, gateways: Iterable[str]) -> set[str]:
        """Those of `gateways` whose claim is held now."""
        ...

    def now(self, connection: Connection) -> float:
        """The time, by a clock that all gateways on this database share."""
        ...

    def begin(self, connection: Connection) -> None:
        """Begin a transaction that writes, on the driver, unless its next statement does."""
        ...

    def release(self) -> None: ...

    def check(self, connection: Connection) -> None:
        """Before the tables are touched, in the same transaction. Raises SetupError when the stored data is damaged."""
        ...

    def explain(self, error: BaseException, doing: str) -> AtollError:
        """What a failed statement means for the caller: Overloaded when a later try may succeed.
        `doing` completes "the database cannot be ...": written, read."""
        ...

    def driver(self, connection: Connection) -> Any:
        """The DBAPI connection below, for statements too frequent to compile."""
        ...
