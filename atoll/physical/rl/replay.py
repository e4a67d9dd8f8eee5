"""What off-policy learning remembers: transitions in a file mapped into memory, so that a checkpoint needs no copy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from atoll.core.errors import SetupError

Array = np.ndarray
MARGIN = 8


class Replay:
    """The last `size` transitions, rows of `width` float32, in the file `path`.

    The file has room for an eighth more, which is not drawn from. A learner that is taken back to a checkpoint, at most
    `margin` rows old, so finds every row that it may draw: what was written since has not touched them. Rows after the
    checkpoint are written again, the same. Raises SetupError where the disk is full, before anything is learned.
    """

    def __init__(self, path: Path, size: int, width: int):
        self.size, self.margin, self.count = size, max(size // MARGIN, 1), 0
        self.room = size + self.margin
        path.parent.mkdir(parents=True, exist_ok=True)
        need = self.room * width * 4
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, need)
        except OSError as error:
            raise SetupError(f"no room for the replay of {need / 1e6:.0f} MB: {error.strerror}") from None
        self.rows = np.memmap(path, np.float32, "r+", shape=(self.room, width))
        self.kept = 0

    def add(self, rows: Array) -> None:
        self.rows[np.arange(self.count, self.count + len(rows)) % self.room] = rows
        self.count += len(rows)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """(n, width), drawn evenly from the last `size` rows."""
        oldest = max(0, self.count - self.size)
        return self.rows[rng.integers(oldest, self.count, n) % self.room]

    def overdue(self, more: int) -> bool:
        """Whether `more` rows would be more than `margin` since the last `keep`."""
        return self.count + more - self.kept > self.margin

    def keep(self) -> int:
        """Everything so far is on the disk; returns the count, which `restore` takes."""
        self.rows.flush()
        self.kept = self.count
        return self.count

    def restore(self, count: int) -> None:
        self.count = self.kept = count
