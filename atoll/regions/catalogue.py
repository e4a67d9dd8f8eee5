"""The regions of the cloud, as data."""

from __future__ import annotations

import tomllib
from pathlib import Path

from atoll.core.places import Region

FILE = Path(__file__).parent / "catalogue.toml"


def read_regions(path: Path | None = None) -> tuple[Region, ...]:
    return tuple(Region(**row) for row in tomllib.loads((path or FILE).read_text())["regions"])
