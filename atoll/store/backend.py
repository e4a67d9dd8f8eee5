"""What a kind of database must offer. SQLite and PostgreSQL each implement it in a file of their own."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from atoll.core.errors import AtollError


class Backend(Protocol):
    """One database: connections to it, the claim that lets this process write, its error messages. `gateway` is the
    identity under which it writes, new with every start."""

    engine: Engine
    gateway: str
    placeholder: str

    def claim(self, connection: Connection) -> None:
        """Make `connection` the one that writes. Raises SetupError naming the holder when another process has it."""
        ...

    def begin(self, connection: Connection) -> None:
        """Begin a transaction that writes, on the driver, unless its next statement does."""
        ...

    def release(self) -> None: ...

    def check(self, connection: Connection) -> None:
        """Raises SetupError when the stored data is damaged."""
        ...

    def explain(self, error: BaseException, doing: str) -> AtollError:
        """What a failed statement means for the caller: Overloaded when a later try may succeed.
        `doing` completes "the database cannot be ...": written, read."""
        ...

    def driver(self, connection: Connection) -> Any:
        """The DBAPI connection below, for statements too frequent to compile."""
        ...
