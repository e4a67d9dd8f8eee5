"""Rows that are safe on disk but not yet in the database: a small group costs one write, and a transaction moves many.

The file holds a line a group: CRC-32, a space, {"columns": [...], "rows": [[...], ...]}, newline. A CRC starts from the
journal's number, and the transaction that moves the rows stores that number in the database. So lines that were moved
are never valid again, and the file is written over from its start: syncing a file that does not grow is cheaper.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson
from sqlalchemy import Connection

from atoll.store.backend import Backend
from atoll.store.schema import entries

ROWS = 256
NUMBERS = 1 << 31

Values = tuple[Any, ...]


class Journal:
    """Belongs to the writer's thread; others may look at `rows`, which is replaced, never emptied.

    `moving`: a transaction with the rows has begun, and none has succeeded for certain since. Until one has, nothing
    is added: it could bear a number that the database already knows."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.rows: dict[str, Values] = {}
        self._path = path
        self._columns = columns
        self._created = columns.index("created_at")
        self._prefix = b'{"columns":%b,"rows":' % orjson.dumps(list(columns))
        self._file = -1
        self._end = 0
        self._number = 1
        self.moving = False

    def open(self, moved: int) -> None:
        """Read what a process left behind that ended without moving its rows. `moved`: the number in the database.
        Raises OSError."""
        self._number = (moved + 1) % NUMBERS
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC, 0o600)
        folder = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        with self._path.open("rb") as lines:
            for line in lines:
                check, _, body = line[:-1].partition(b" ")
                if line[-1:] != b"\n" or check != b"%08x" % crc32(body, self._number):
                    break
                group = orjson.loads(body)
                for row in group["rows"]:
                    known = dict(zip(group["columns"], row, strict=True))
                    self._keep([tuple(known.get(name, "") for name in self._columns)])

    def add(self, rows: list[Values]) -> bool:
        """Write and sync a group; False if it should go to the database, with what is here. Raises OSError when the
        disk cannot, ValueError for values that JSON does not hold exactly."""
        if self.moving or len(self.rows) + len(rows) > ROWS:
            return False
        try:
            body = b"%b%b}" % (self._prefix, orjson.dumps(rows, option=orjson.OPT_STRICT_INTEGER))
        except TypeError as error:
            raise ValueError(str(error)) from None
        line = b"%08x %b\n" % (crc32(body, self._number), body)
        if os.pwrite(self._file, line, self._end) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += len(line)
        self._keep(rows)
        return True

    def leave(self) -> int:
        """The number to store with the rows, in the transaction that takes them."""
        self.moving = True
        return self._number

    def left(self) -> None:
        """That transaction was committed."""
        self.moving, self._end, self.rows = False, 0, {}
        self._number = (self._number + 1) % NUMBERS

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _keep(self, rows: list[Values]) -> None:
        """The last row of an id counts, created when the first was."""
        at = self._created
        for row in rows:
            known = self.rows.get(row[0])
            if known and known[at] != row[at]:
                row = (*row[:at], known[at], *row[at + 1 :])
            self.rows[row[0]] = row


class Carrier:
    """Takes the journal's rows along into the database, at the head of every transaction of the writer."""

    def __init__(self, backend: Backend, put: Callable[[Sequence[Values], Connection], None]) -> None:
        self._backend = backend
        self._put = put
        self.journal = Journal(backend.journal, entries.c.keys()) if backend.journal else None

    def open(self, connection: Connection) -> None:
        """Take along what an earlier process left. Raises OSError."""
        if self.journal:
            self.journal.open(connection.exec_driver_sql("PRAGMA user_version").scalar())
            self.load(connection)

    def load(self, connection: Connection) -> None:
        if self.journal and self.journal.rows:
            number = self.journal.leave()
            self._put(list(self.journal.rows.values()), connection)
            self._backend.driver(connection).execute(f"PRAGMA user_version = {number}").close()

    def arrived(self) -> None:
        if self.journal and self.journal.moving:
            self.journal.left()

    def close(self) -> None:
        if self.journal:
            self.journal.close()


def lay_over(connection: Connection, rows: Sequence[Values]) -> None:
    """Let this connection see `entries` with `rows` in it, until its transaction is rolled back. SQLite looks for a
    name among temporary views first."""
    names = entries.c.keys()
    run = connection.exec_driver_sql
    run("CREATE TEMP TABLE fresh AS SELECT * FROM main.entries LIMIT 0")
    run(f"INSERT INTO fresh ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", list(rows))
    run("UPDATE fresh SET created_at = old.created_at FROM main.entries AS old WHERE old.id = fresh.id")
    run(
        "CREATE TEMP VIEW entries AS SELECT * FROM main.entries WHERE id NOT IN (SELECT id FROM fresh)"
        " UNION ALL SELECT * FROM fresh"
    )
