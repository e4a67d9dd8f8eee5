"""Where a request may be processed and where what is kept of it may be stored: decided, recorded and audited.

A rule names places on two axes: region ids, zone sets (`eu`, `global-ex-cn`), ISO country codes, or `global` for all.
A key has a rule; a request may narrow it and never widen it. Everything fails closed: an unknown name is an error,
and a rule that leaves no region allows none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from atoll.core.errors import InvalidRequest
from atoll.core.places import Region, Residency, Unavailable
from atoll.core.types import Entry

ANYWHERE = "anywhere"
GLOBAL = "global"
PREFIXES = ("eu", "us", GLOBAL)
AXES = ("process_in", "store_in")
NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")
FIELDS = ("residency.process_in", "residency.store_in")

Regions = Mapping[str, Region]


@dataclass(frozen=True, slots=True)
class Allowed:
    """A rule as region ids. An empty set allows no region."""

    process_in: frozenset[str]
    store_in: frozenset[str]


@dataclass(frozen=True, slots=True)
class Violation:
    """One way in which a ledger row breaks the rule that it was served under."""

    entry_id: str
    axis: Literal["process_in", "store_in", "path", "rule"]
    region: str
    reason: str


def resolve(names: Iterable[str], regions: Regions, field: str = "residency") -> frozenset[str]:
    """Region ids that `names` stand for; no names, all regions. A name is looked up as region id, then as zone set,
    then as ISO country code, in any case. Raises InvalidRequest for an unknown name."""
    names = tuple(names)
    if not names:
        return frozenset(regions)
    return frozenset().union(*(_places(name, regions, field) for name in names))


def allowed(rule: Residency, regions: Regions) -> Allowed:
    """Raises InvalidRequest where the rule names what the catalogue does not know."""
    sets = (resolve(getattr(rule, axis), regions, field) for axis, field in zip(AXES, FIELDS, strict=True))
    return Allowed(*sets)


def narrow(key: Residency, request: Residency, regions: Regions, fields: tuple[str, str] = FIELDS) -> Residency:
    """The key's rule, narrowed by the request's; an axis that the request leaves open stays as the key has it.
    Raises InvalidRequest, naming the field, for a region that the key does not allow."""
    axes = (
        _narrowed(getattr(key, axis), getattr(request, axis), regions, field)
        for axis, field in zip(AXES, fields, strict=True)
    )
    return Residency(*axes, request.on_unavailable)


def requested(key: Residency, body: Mapping[str, Any], regions: Regions) -> tuple[Residency, str]:
    """The rule of one request and its model without prefix, from `model`, `data_residency` and `residency` of its
    body, each of which narrows what stands before it. Raises InvalidRequest."""
    rule, otherwise = key, key.on_unavailable
    wish, model = split_prefix(str(body.get("model") or ""), otherwise)
    if wish:
        rule = narrow(rule, wish, regions, ("model", "model"))
    if (value := body.get("data_residency")) is not None:
        rule = narrow(rule, parse(value, "data_residency", otherwise), regions, ("data_residency",) * 2)
    if (value := body.get("residency")) is not None:
        rule = narrow(rule, parse(value, "residency", otherwise), regions)
    return rule, model


def parse(value: Any, field: str = "residency", otherwise: Unavailable = "reject") -> Residency:
    """`{"process_in": ..., "store_in": ..., "on_unavailable": ...}`, where a string stands for a list of one; or
    a string or list alone for both axes. `otherwise` stands in for an `on_unavailable` that is not said.
    Raises InvalidRequest."""
    if value is None:
        return Residency(on_unavailable=otherwise)
    if isinstance(value, str | list | tuple):
        names = _names(value, field)
        return Residency(names, names, otherwise)
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"'{field}' must be an object, a string or a list of strings", param=field)
    if unknown := sorted(set(map(str, value)) - {*AXES, "on_unavailable"}):
        known = ", ".join((*AXES, "on_unavailable"))
        raise InvalidRequest(f"'{field}' has an unknown field '{unknown[0]}'; known: {known}", param=field)
    axes = [_names(value[a], f"{field}.{a}") if value.get(a) is not None else () for a in AXES]
    unavailable = value.get("on_unavailable") or otherwise
    if unavailable not in ("reject", "queue"):
        where = f"{field}.on_unavailable"
        raise InvalidRequest(f"'{where}' must be 'reject' or 'queue'", param=where)
    return Residency(axes[0], axes[1], unavailable)


def split_prefix(model: str, otherwise: Unavailable = "reject") -> tuple[Residency | None, str]:
    """`eu.qwen3` -> both axes in `eu`, `qwen3`. `global.` asks for processing anywhere and says nothing of storing."""
    prefix, dot, rest = model.partition(".")
    if not dot or not rest or prefix not in PREFIXES:
        return None, model
    return Residency((prefix,), () if prefix == GLOBAL else (prefix,), otherwise), rest


def render(rule: Residency) -> str:
    """Canonical text for the ledger, such as `process_in=eu,us store_in=eu on_unavailable=queue`."""
    axes = {axis: sorted({name.lower() for name in getattr(rule, axis)}) for axis in AXES}
    parts = [f"{axis}={','.join(names)}" for axis, names in axes.items() if names]
    if rule.on_unavailable != "reject":
        parts.append(f"on_unavailable={rule.on_unavailable}")
    return " ".join(parts) or ANYWHERE


def parse_rule(text: str) -> Residency:
    """What `render` wrote. Raises InvalidRequest."""
    if text == ANYWHERE:
        return Residency()
    fields = dict(part.partition("=")[::2] for part in text.split(" "))
    axes = {axis: fields[axis].split(",") for axis in AXES if axis in fields}
    rest = {name: value for name, value in fields.items() if name not in AXES}
    return parse(axes | rest, "rule")


def violations(entries: Iterable[Entry], regions: Regions) -> list[Violation]:
    """Every way in which rows break their own rules. Rows that tell no rule, path and place of storage are older
    than residency and are not judged."""
    found: list[Violation] = []
    known: dict[str, Allowed | str] = {}
    for entry in entries:
        if not (entry.rule or entry.path or entry.stored_in):
            continue
        if entry.rule not in known:
            known[entry.rule] = _understood(entry.rule, regions)
        places = known[entry.rule]
        if isinstance(places, str):
            found.append(Violation(entry.id, "rule", "", places))
        else:
            found += _broken(entry, places, len(places.store_in) < len(regions))
    return found


def _narrowed(mine: tuple[str, ...], asked: tuple[str, ...], regions: Regions, field: str) -> tuple[str, ...]:
    """A narrower set is kept as region ids, so that a zone set that grows meanwhile cannot pass what the key allows."""
    if not asked:
        return mine
    places = resolve(asked, regions, field)
    if not mine:
        return asked
    allowing = resolve(mine, regions, field)
    if wider := sorted(places - allowing):
        raise InvalidRequest(
            f"'{field}' asks for {', '.join(wider[:4])}{' and more' if len(wider) > 4 else ''}, which the key does not "
            f"allow (it allows {', '.join(mine)}); a request may narrow the key's rule, never widen it",
            param=field,
            code="data_residency_mismatch",
        )
    return mine if places == allowing else tuple(sorted(places))


def _understood(text: str, regions: Regions) -> Allowed | str:
    if not text:
        return "no rule is recorded"
    try:
        return allowed(parse_rule(text), regions)
    except InvalidRequest as error:
        return error.message


def _broken(entry: Entry, places: Allowed, storing_is_ruled: bool) -> list[Violation]:
    path = _path(entry.path)
    if path is None:
        return [Violation(entry.id, "path", "", f"'{entry.path}' is not a path such as 'eu-central-1:120'")]
    found = []
    for region in dict.fromkeys([*(region for region, _ in path), *filter(None, [entry.region])]):
        if region not in places.process_in:
            found.append(Violation(entry.id, "process_in", region, f"processed in {region}, against '{entry.rule}'"))
    if entry.stored_in not in places.store_in and (entry.stored_in or storing_is_ruled):
        told = f"stored in {entry.stored_in}" if entry.stored_in else "the place of storage is not recorded"
        found.append(Violation(entry.id, "store_in", entry.stored_in, f"{told}, against '{entry.rule}'"))
    if path and path[-1][0] != entry.region and (entry.region or path[-1][1]):
        reason = f"the path ends in {path[-1][0]}, the row says {entry.region or 'nothing'}"
        found.append(Violation(entry.id, "path", entry.region, reason))
    if path and entry.status == "done" and (told := sum(n for _, n in path)) != entry.usage.output:
        reason = f"the path tells {told} output tokens, the row {entry.usage.output}"
        found.append(Violation(entry.id, "path", entry.region, reason))
    return found


def _path(text: str) -> list[tuple[str, int]] | None:
    steps = [step.rpartition(":")[::2] for step in text.split()]
    if not all(region and count.isascii() and count.isdigit() for region, count in steps):
        return None
    return [(region, int(count)) for region, count in steps]


def _places(name: str, regions: Regions, field: str) -> frozenset[str]:
    """The first of region id, zone set and country code that knows the name: a union could widen the rule."""
    wanted = name.lower()
    for known in (
        lambda r: r.id.lower() == wanted,
        lambda r: wanted in (zone.lower() for zone in r.zones),
        lambda r: (r.jurisdiction or r.country).lower() == wanted,
    ):
        if found := frozenset(id for id, region in regions.items() if known(region)):
            return found
    if wanted == GLOBAL:
        return frozenset(regions)
    zones = sorted({zone for r in regions.values() for zone in r.zones} | {GLOBAL})
    countries = sorted({r.jurisdiction or r.country for r in regions.values()})
    told = f"zone sets {', '.join(zones)}; countries {', '.join(countries)}; regions {', '.join(sorted(regions))}"
    raise InvalidRequest(f"'{field}' names '{name}', which is not known here; known are: {told}", param=field)


def _names(value: Any, field: str) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(name, str) for name in listed):
        rule = "must be a name or a list of at least one name; leave it out to allow any place"
        raise InvalidRequest(f"'{field}' {rule}", param=field)
    names = tuple(sorted({name.strip().lower() for name in listed}))
    for name in names:
        if not NAME.fullmatch(name):
            raise InvalidRequest(f"'{field}' has '{name[:64]}', which cannot be the name of a place", param=field)
    return names
