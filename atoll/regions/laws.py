"""What laws say about processing and storing personal data abroad, per jurisdiction: data that operators edit.

This is not legal advice, and nothing is enforced from it: a law only suggests a residency rule, which somebody has to
put on a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.core.places import Region, Residency
from atoll.regions.catalogue import COUNTRIES
from atoll.regions.tables import Tables, read_tables

FILE = Path(__file__).parent / "laws.toml"
DISCLAIMER = "Editable data, not legal advice."
MAX_SUMMARY = 300
AXES = ("process_in", "store_in")


@dataclass(frozen=True, slots=True)
class Law:
    """`jurisdiction` is an ISO country code or the name of a zone set. `suggest` is a rule that keeps clear of the
    law's conditions; an empty axis means that the law asks for no place. `as_of` dates the last change that is
    taken into account."""

    jurisdiction: str
    name: str
    article: str
    summary: str
    suggest: Residency
    source: str
    as_of: str


def read_laws(zones: Iterable[str], path: Path | None = None) -> tuple[Law, ...]:
    """`zones` are the names of the catalogue's zone sets. Raises SetupError naming file, line and the rule broken."""
    tables = read_tables(path or FILE)
    rows = tables.keys("", tables.data, ("laws",))["laws"]
    if not isinstance(rows, list):
        raise tables.refuse("", "laws", "'laws' must be a list of tables: [[laws]]")
    known = frozenset(zones)
    return tuple(_law(tables, f"laws.{n}", row, known) for n, row in enumerate(rows))


def laws_of(laws: Iterable[Law], region: Region) -> tuple[Law, ...]:
    """Those of the region's country and of the zone sets that it is in."""
    places = {region.jurisdiction or region.country, *region.zones}
    return tuple(law for law in laws if law.jurisdiction in places)


def _law(tables: Tables, table: str, row: Any, zones: frozenset[str]) -> Law:
    texts = ("jurisdiction", "name", "article", "summary")
    tables.keys(table, row, (*texts, "suggest", "source", "as_of"))
    values = {key: tables.text(table, key, row[key]) for key in texts}
    if values["jurisdiction"] not in COUNTRIES | zones:
        rule = f"'jurisdiction' must be an ISO 3166 country code or a zone set ({', '.join(sorted(zones))})"
        raise tables.refuse(table, "jurisdiction", f"{rule}, not '{values['jurisdiction']}'")
    summary = values["summary"]
    if len(summary) > MAX_SUMMARY or not summary.endswith(".") or ". " in summary:
        raise tables.refuse(table, "summary", f"'summary' must be one sentence of at most {MAX_SUMMARY} letters")
    return Law(
        **values,
        suggest=_suggest(tables, f"{table}.suggest", row["suggest"], zones),
        source=tables.url(table, "source", row["source"]),
        as_of=tables.date(table, "as_of", row["as_of"]),
    )


def _suggest(tables: Tables, table: str, given: Any, zones: frozenset[str]) -> Residency:
    tables.keys(table, given, (), AXES)
    axes = {}
    for axis in given:
        axes[axis] = tables.texts(table, axis, given[axis])
        if unknown := [name for name in axes[axis] if name not in zones and name.upper() not in COUNTRIES]:
            told = ", ".join(sorted(zones))
            raise tables.refuse(table, axis, f"'{unknown[0]}' is neither a zone set ({told}) nor a country's code")
    return Residency(**axes)
