"""TOML that people write: what is wrong in it is told with file, line and rule."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.core.errors import SetupError

HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
KEY = re.compile(r"\s*([A-Za-z0-9_-]+|\"[^\"]+\"|'[^']+')\s*[.=]")
PLACE = re.compile(r"\s*\((?:at line (\d+), column \d+|at end of document)\)")
DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")


@dataclass(frozen=True, slots=True)
class Tables:
    """A parsed file, and where its tables and keys stand. A table's name has an index where it is one of several:
    `regions.3`, `zones.eu`; the empty name is the top of the file."""

    path: Path
    data: Mapping[str, Any]
    lines: Mapping[tuple[str, str], int]

    def refuse(self, table: str, key: str, rule: str) -> SetupError:
        """The error to raise. Where the key has no line of its own, that of the innermost table around it is told."""
        places = [(table, key), (f"{table}.{key}".strip("."), "")]
        while table:
            parent, _, name = table.rpartition(".")
            places += [(table, ""), (parent, name)]
            table = parent
        line = next((self.lines[place] for place in places if place in self.lines), 1)
        return SetupError(f"{self.path}, line {line}: {rule}")

    def keys(self, table: str, given: Any, needed: Iterable[str], more: Iterable[str] = ()) -> Mapping[str, Any]:
        """`given`, if it is a table with all of the needed keys and none beside `more`. Raises SetupError."""
        needed = tuple(needed)
        known = (*needed, *more)
        if not isinstance(given, Mapping):
            raise self.refuse(table, "", f"'{table}' must be a table")
        for key in given:
            if key not in known:
                raise self.refuse(table, key, f"unknown key '{key}'; known: {', '.join(known)}")
        for key in needed:
            if key not in given:
                raise self.refuse(table, "", f"'{key}' is missing")
        return given

    def text(self, table: str, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.refuse(table, key, f"'{key}' must be a text that is not empty")
        return value

    def texts(self, table: str, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self.refuse(table, key, f"'{key}' must be a list of texts")
        if len(set(value)) < len(value):
            raise self.refuse(table, key, f"'{key}' names something twice")
        return tuple(value)

    def number(self, table: str, key: str, value: Any, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.refuse(table, key, f"'{key}' must be a number from {low:g} to {high:g}, not {value!r}")
        return value

    def url(self, table: str, key: str, value: Any) -> str:
        if not re.fullmatch(r"https?://[^\s/]+\S*", self.text(table, key, value)):
            raise self.refuse(table, key, f"'{key}' must be a web address, not '{value}'")
        return value

    def date(self, table: str, key: str, value: Any) -> str:
        if not isinstance(value, str) or not DATE.fullmatch(value):
            raise self.refuse(table, key, f"'{key}' must be a date such as \"2026\", \"2026-11\" or \"2026-11-24\"")
        return value


def read_tables(path: Path) -> Tables:
    """Raises SetupError for a file that cannot be read or is not TOML."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SetupError(f"{path}: not UTF-8 text, from byte {error.start} on") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = PLACE.search(str(error))
        line = found[1] if found and found[1] else len(text.splitlines())
        raise SetupError(f"{path}, line {line}: not valid TOML: {PLACE.sub('', str(error))}") from None
    return Tables(path, data, _lines(text))


def _lines(text: str) -> dict[tuple[str, str], int]:
    """(table, key) -> line; a table's own line has the empty key. A multi-line value may shadow a key: then the line
    told is near, not exact."""
    found: dict[tuple[str, str], int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := HEADER.match(line):
            name = re.sub(r"[\"'\s]", "", header[2])
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                table = f"{name}.{counts[name]}"
            else:
                first, dot, rest = name.partition(".")
                table = f"{first}.{counts[first]}.{rest}" if dot and first in counts else name
            found.setdefault((table, ""), number)
        elif key := KEY.match(line):
            found.setdefault((table, key[1].strip("\"'")), number)
    return found
