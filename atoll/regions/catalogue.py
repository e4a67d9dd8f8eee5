"""The regions of the cloud, as data: parsed strictly, because routing and residency believe every value.

An operator's own catalogue has the form of catalogue.toml beside this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from atoll.core.places import Region, RegionStatus
from atoll.regions.tables import Tables, read_tables

FILE = Path(__file__).parent / "catalogue.toml"
ID = re.compile(r"[a-z0-9][a-z0-9-]{1,62}[a-z0-9]")
ZONE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
ESTIMATE = "estimate: "
GLOBAL = "global"
TEXTS = ("id", "city", "country", "status")
RANGES = {
    "lat": (-90, 90),
    "lon": (-180, 180),
    "availability_zones": (1, 100),
    "carbon": (0, 2000),
    "electricity": (0, 5),
}
MEMBERS = ("countries", "regions", "except")
SOURCED = ("city", "country", "lat", "lon", "status", "availability_zones", "carbon", "electricity")
STATUSES = get_args(RegionStatus)
ISO_3166 = """
AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY
BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK
FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR
IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK
ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM
PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF
TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
"""
COUNTRIES = frozenset(ISO_3166.split())


@dataclass(frozen=True, slots=True)
class ZoneSet:
    """Countries and region ids that a rule names with one word; `excluded` ones are what it leaves out of the world."""

    name: str
    means: str
    countries: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()

    def holds(self, id: str, country: str) -> bool:
        return country in self.countries or id in self.regions or bool(self.excluded and country not in self.excluded)


@dataclass(frozen=True, slots=True)
class Catalogue:
    regions: tuple[Region, ...]
    zones: tuple[ZoneSet, ...]


def read_regions(path: Path | None = None) -> tuple[Region, ...]:
    """Raises SetupError naming file, line and the rule that is broken."""
    return read_catalogue(path).regions


def read_catalogue(path: Path | None = None) -> Catalogue:
    """Raises SetupError naming file, line and the rule that is broken."""
    tables = read_tables(path or FILE)
    top = tables.keys("", tables.data, ("zones", "sources", "regions"), ("defaults",))
    sources = _sources(tables, top["sources"])
    defaults = _references(tables, "defaults", top.get("defaults", {}), sources)
    zones = _zones(tables, top["zones"])
    rows = top["regions"]
    if not isinstance(rows, list) or not rows:
        raise tables.refuse("", "regions", "'regions' must be a list of at least one table: [[regions]]")
    seen: set[str] = set()
    regions = []
    for n, row in enumerate(rows):
        region = _region(tables, f"regions.{n}", row, zones, (sources, defaults))
        if region.id in seen:
            raise tables.refuse(f"regions.{n}", "id", f"there is a region '{region.id}' already; ids are unique")
        seen.add(region.id)
        regions.append(region)
    for zone in zones:
        if unknown := sorted(zone.regions - seen):
            raise tables.refuse(f"zones.{zone.name}", "regions", f"there is no region '{unknown[0]}'")
    return Catalogue(tuple(regions), zones)


def _sources(tables: Tables, given: Any) -> dict[str, str]:
    """Name -> how it is told beside a value."""
    if not isinstance(given, Mapping):
        raise tables.refuse("sources", "", "'sources' must be a table of tables: [sources.NAME]")
    told = {}
    for name, row in given.items():
        where = f"sources.{name}"
        tables.keys(where, row, ("title", "url", "date"))
        title, url = tables.text(where, "title", row["title"]), tables.url(where, "url", row["url"])
        told[name] = f"{title} ({tables.date(where, 'date', row['date'])}), {url}"
    return told


def _references(tables: Tables, table: str, given: Any, sources: Mapping[str, str]) -> dict[str, str]:
    """Field -> source, as told. A reference is the name of a source or tells an estimate."""
    if not isinstance(given, Mapping):
        raise tables.refuse(table, "", f"'{table}' must be a table of field = source")
    found = {}
    for field, reference in given.items():
        if field not in SOURCED:
            raise tables.refuse(table, field, f"'{field}' takes no source; fields that do: {', '.join(SOURCED)}")
        tables.text(table, field, reference)
        if reference.startswith(ESTIMATE) and reference[len(ESTIMATE) :].strip():
            found[field] = reference
        elif reference in sources:
            found[field] = sources[reference]
        else:
            rule = f"the source of '{field}' must be one of {', '.join(sources)}, or \"{ESTIMATE}\" and how it was made"
            raise tables.refuse(table, field, f"{rule}; '{reference}' is neither")
    return found


def _zones(tables: Tables, given: Any) -> tuple[ZoneSet, ...]:
    if not isinstance(given, Mapping):
        raise tables.refuse("zones", "", "'zones' must be a table of tables: [zones.NAME]")
    return tuple(_zone(tables, name, row) for name, row in given.items())


def _zone(tables: Tables, name: str, row: Any) -> ZoneSet:
    where = f"zones.{name}"
    tables.keys(where, row, ("means",), MEMBERS)
    if not ZONE.fullmatch(name) or name == GLOBAL:
        rule = f"a zone set is named with lower-case letters, digits and hyphens, and not '{GLOBAL}' (anywhere)"
        raise tables.refuse(where, "", rule)
    sets = {key: frozenset(tables.texts(where, key, row[key])) for key in MEMBERS if key in row}
    if not any(sets.values()) or ("except" in sets and len(sets) > 1):
        raise tables.refuse(where, "", "a zone set has 'countries', 'regions' or both, or else only 'except'")
    for key in ("countries", "except"):
        if unknown := sorted(sets.get(key, frozenset()) - COUNTRIES):
            raise tables.refuse(where, key, f"'{unknown[0]}' is not an ISO 3166 country code of two capital letters")
    if name.upper() in COUNTRIES and sets != {"countries": {name.upper()}}:
        rule = f"'{name}' is a country's code, and rules name countries too: it may hold {name.upper()} and no more"
        raise tables.refuse(where, "", rule)
    empty: frozenset[str] = frozenset()
    means = tables.text(where, "means", row["means"])
    return ZoneSet(name, means, *(sets.get(key, empty) for key in MEMBERS))


def _region(
    tables: Tables,
    table: str,
    row: Any,
    zones: tuple[ZoneSet, ...],
    references: tuple[Mapping[str, str], Mapping[str, str]],
) -> Region:
    """`references` are the known sources and what stands for fields that name none."""
    tables.keys(table, row, (*TEXTS, *RANGES), ("jurisdiction", "sources"))
    values = {key: tables.text(table, key, row[key]) for key in TEXTS}
    values |= {key: tables.number(table, key, row[key], *RANGES[key]) for key in RANGES}
    values["jurisdiction"] = tables.text(table, "jurisdiction", row.get("jurisdiction", values["country"]))
    id = values["id"]
    if not ID.fullmatch(id) or id == GLOBAL or id in {zone.name for zone in zones}:
        rule = "an id is 3 to 64 lower-case letters, digits and inner hyphens, and not the name of a zone set"
        raise tables.refuse(table, "id", f"{rule} or '{GLOBAL}'; '{id}' is not such an id")
    if values["status"] not in STATUSES:
        raise tables.refuse(table, "status", f"'status' must be one of {', '.join(STATUSES)}, not '{values['status']}'")
    if not isinstance(values["availability_zones"], int):
        raise tables.refuse(table, "availability_zones", "'availability_zones' must be a whole number")
    for key in ("country", "jurisdiction"):
        if values[key] not in COUNTRIES:
            rule = f"'{key}' must be an ISO 3166 country code of two capital letters, not '{values[key]}'"
            raise tables.refuse(table, key, rule)
    sources, defaults = references
    told = {**defaults, **_references(tables, f"{table}.sources", row.get("sources", {}), sources)}
    if missing := [field for field in SOURCED if field not in told]:
        rule = f"'{missing[0]}' has no source: name one in this region's 'sources' or in [defaults]"
        raise tables.refuse(table, missing[0], rule)
    within = tuple(zone.name for zone in zones if zone.holds(id, values["jurisdiction"]))
    return Region(**values, zones=within, sources=tuple((field, told[field]) for field in SOURCED))
