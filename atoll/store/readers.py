"""Queries run on threads of their own, beside the writer: a long report never delays a commit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Row, Select
from sqlalchemy.exc import SQLAlchemyError

from atoll.store.backend import Backend
from atoll.store.journal import Values, lay_over

THREADS = 2


class Readers:
    def __init__(self, backend: Backend):
        self._backend = backend
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="atoll-store-reader")

    async def fetch(self, query: Select[Any], fresh: Sequence[Values] = ()) -> Sequence[Row]:
        """All rows, as if those of `fresh` were in `entries`. Raises Overloaded or SetupError when the database cannot
        be read."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, query, fresh)

    def _fetch(self, query: Select[Any], fresh: Sequence[Values]) -> Sequence[Row]:
        try:
            with self._backend.engine.connect() as connection:
                if fresh:
                    lay_over(connection, fresh)
                return connection.execute(query).all()
        except SQLAlchemyError as error:
            raise self._backend.explain(error, "read") from error

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
