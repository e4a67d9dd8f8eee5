from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_support import open_desk

from atoll.jobs.desk import Desk


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with quick stages for tests that leave its worker alone."""
    opened = open_desk(tmp_path_factory.mktemp("shared"))
    yield opened
    opened.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk with quick stages, and workers of its own."""
    opened = open_desk(tmp_path)
    yield opened
    opened.close()
