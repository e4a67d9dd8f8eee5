"""One thread and one connection that write. Jobs run in the order given, each in a transaction of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, SQLAlchemyError

from atoll.core.errors import AtollError, InvalidRequest, Overloaded, SetupError
from atoll.store.backend import Backend
from atoll.store.journal import Carrier

T = TypeVar("T")
Work = Callable[[Connection], T]
STOP_S = 30.0

log = logging.getLogger(__name__)

Done = Callable[[T | None, AtollError | None], None]
Job = tuple[Work, Done, bool, Callable[[], bool] | None]


class Writer:
    """Made inside the running loop, to which results return. `start` claims the database for this process."""

    def __init__(self, backend: Backend, carrier: Carrier):
        self._backend = backend
        self._carrier = carrier
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="atoll-store-writer", daemon=True)
        self._dbapi = backend.engine.dialect.loaded_dbapi

    async def start(self, prepare: Work) -> None:
        """Connect, claim, and run `prepare`. Raises what it raised, after the thread has ended."""
        self._thread.start()
        try:
            await self.run(prepare)
        except AtollError:
            await self.stop()
            raise

    def submit(
        self, work: Work, done: Done, *, repeatable: bool = False, instead: Callable[[], bool] | None = None
    ) -> None:
        """Queue `work`; `done` is called on the loop with its result or with what went wrong. Repeatable work that
        failed on a connection made earlier is given one new connection, as the old one may have been cut.
        Where `instead`, tried first, returns True, it has done the work without a transaction."""
        self._jobs.put((work, done, repeatable, instead))

    async def run(self, work: Work[T]) -> T:
        waiter = self._loop.create_future()

        def done(result: T | None, error: AtollError | None) -> None:
            if waiter.done():
                return
            if error:
                waiter.set_exception(error)
            else:
                waiter.set_result(result)

        self.submit(work, done)
        return await waiter

    async def stop(self) -> None:
        """Finish the jobs already queued, then close the connection and give the database back."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, STOP_S)

    def _run(self) -> None:
        while job := self._jobs.get():
            work, done, repeatable, instead = job
            old = self._connection
            result, error = self._perform(work, instead)
            if repeatable and old and isinstance(error, Overloaded):
                result, error = self._perform(work, instead)
            try:
                self._loop.call_soon_threadsafe(done, result, error)
            except RuntimeError:
                break  # the loop was closed without stop(): nobody is left to answer
        self._disconnect()
        self._carrier.close()
        self._backend.release()

    def _perform(self, work: Work[T], instead: Callable[[], bool] | None) -> tuple[T | None, AtollError | None]:
        try:
            if instead is not None and instead():
                return None, None
            return self._transact(self._connected(), work), None
        except AtollError as error:
            return None, error
        except (DataError, self._dbapi.DataError, OverflowError, ValueError) as error:
            self._disconnect()
            return None, InvalidRequest(f"a value cannot be stored: {str(error).splitlines()[0]}")
        except (SQLAlchemyError, self._dbapi.Error, OSError) as error:
            self._disconnect()
            return None, self._backend.explain(error, "written")
        except Exception as error:
            log.exception("a job of the store failed")
            self._disconnect()
            return None, SetupError(f"a defect in Atoll's store: {error!r}; please report it with the log")

    def _transact(self, connection: Connection, work: Work[T]) -> T:
        """Begins and ends on the driver: SQLAlchemy's own begin and commit cost as much as writing eight rows."""
        self._backend.begin(connection)
        with ExitStack() as undo:
            undo.callback(self._end, connection, "rollback")
            self._carrier.load(connection)
            result = work(connection)
            undo.pop_all()
        self._end(connection, "commit")
        self._carrier.arrived()
        return result

    def _end(self, connection: Connection, how: str) -> None:
        if connection.in_transaction():
            getattr(connection, how)()
        else:
            getattr(self._backend.driver(connection), how)()

    def _connected(self) -> Connection:
        if self._connection is None:
            with ExitStack() as undo:
                connection = undo.enter_context(self._backend.engine.connect())
                self._backend.claim(connection)
                undo.pop_all()
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        """Close for real: a connection that failed once is not given another chance."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.invalidate()
            connection.close()
