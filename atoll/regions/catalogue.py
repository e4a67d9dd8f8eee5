"""The regions of the cloud, as data."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "catalogue.toml"


def read_regions(path: Path = FILE) -> list[dict[str, Any]]:
    """Rows with id, city, country, lat, lon (degrees) and status."""
    return tomllib.loads(path.read_text())["regions"]
