"""JSON Schemas of callers: checked, and written as a grammar that the engine decodes under.

The engine compiles `%json` with llguidance, in milliseconds and bounded memory. A grammar that it cannot compile
is dropped with a line in its log and the answer is free text, so everything doubtful is refused here, and
`Shape` tells from the first characters of an answer whether it was held to its schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema
from jsonschema.validators import validator_for

from atoll.core.errors import EngineFailed, InvalidRequest

MAX_BYTES = 64 * 1024
MAX_DEPTH = 64
MAX_PATTERN = 512
NOT_ENFORCED = {
    "not", "if", "then", "else", "uniqueItems", "propertyNames", "dependentRequired", "dependentSchemas",
    "contains", "minContains", "maxContains", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef",
}  # fmt: skip
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
LOOKAROUND = re.compile(r"\(\?[=!<]|\\[1-9]|\\[bB]")
COMPACT = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True, "coerce_one_of": True,
}  # fmt: skip
KEYWORD_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
DATA = {"enum", "const", "default", "examples", "example"}


def check(schema: Any, param: str, *, strict: bool) -> None:
    """Raises InvalidRequest naming `param`. `strict` also refuses what the engine would not enforce."""
    if not isinstance(schema, dict):
        raise InvalidRequest("a JSON Schema must be an object", param=param)
    if _depth(schema) > MAX_DEPTH:
        raise InvalidRequest(f"the schema is nested deeper than {MAX_DEPTH} objects and lists", param=param)
    if len(json.dumps(schema)) > MAX_BYTES:
        raise InvalidRequest(f"the schema is larger than {MAX_BYTES} bytes", param=param)
    try:
        validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "its top"
        raise InvalidRequest(f"not a valid JSON Schema at {where}: {error.message[:200]}", param=param) from None
    for node in _nodes(schema):
        _check_node(schema, node, param, strict)


def _check_node(root: dict[str, Any], node: dict[str, Any], param: str, strict: bool) -> None:
    reference = node.get("$ref")
    if reference is not None and not _resolves(root, reference):
        raise InvalidRequest(f"$ref '{reference[:80]}' must point into the same schema (#/$defs/...)", param=param)
    for pattern in (node.get("pattern"), *node.get("patternProperties", {})):
        if pattern is not None:
            _check_pattern(pattern, param)
    if node.get("enum") == [] or ({k: v for k, v in node.items() if k in ("enum", "const")} and not _satisfiable(node)):
        raise InvalidRequest("an 'enum' or 'const' contradicts its own 'type'", param=param)
    if not strict:
        return
    unenforced = sorted(NOT_ENFORCED & node.keys())
    if unenforced:
        raise InvalidRequest(f"'{unenforced[0]}' cannot be enforced while decoding; leave it out", param=param)
    if node.get("type") == "string" and node.get("format") not in {None, *FORMATS}:
        allowed = ", ".join(sorted(FORMATS))
        raise InvalidRequest(f"format '{node['format']}' cannot be enforced; use one of {allowed}", param=param)


def _check_pattern(pattern: str, param: str) -> None:
    if len(pattern) > MAX_PATTERN or LOOKAROUND.search(pattern):
        rule = f"a pattern may have {MAX_PATTERN} characters and neither look-around nor back-references"
        raise InvalidRequest(f"{rule}: '{pattern[:80]}'", param=param)


def _satisfiable(node: dict[str, Any]) -> bool:
    values = node["enum"] if "enum" in node else [node["const"]]
    kind = {"type": node["type"]} if "type" in node else {}
    return any(jsonschema.Draft202012Validator(kind).is_valid(value) for value in values)


def _resolves(root: dict[str, Any], reference: str) -> bool:
    if reference == "#":
        return True
    if not reference.startswith("#/"):
        return False
    place: Any = root
    for step in reference[2:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(place, dict) or step not in place:
            return False
        place = place[step]
    return isinstance(place, dict | bool)


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """All schemas inside a schema; not the values of `enum`, `const` and `default`, nor property names."""
    if isinstance(schema, list):
        for item in schema:
            yield from _nodes(item)
    elif isinstance(schema, dict):
        yield schema
        for key, value in schema.items():
            if key in KEYWORD_MAPS and isinstance(value, dict):
                yield from _nodes(list(value.values()))
            elif key not in DATA:
                yield from _nodes(value)


def _depth(value: Any) -> int:
    """Nesting of objects and arrays, without recursion."""
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
            if isinstance(child, dict | list)
        ]
        if deepest > MAX_DEPTH:
            break
    return deepest


def rule(schema: dict[str, Any]) -> str:
    """`schema` as a term of a llguidance grammar: compact JSON, properties in the order they are listed."""
    return "%json " + json.dumps({**schema, "x-guidance": COMPACT})


def grammar(schema: dict[str, Any]) -> str:
    return f"%llguidance {{}}\nstart: {rule(schema)}"


@dataclass(slots=True)
class Shape:
    """Watches one answer that must be JSON. Raises EngineFailed when the engine did not hold it to the schema."""

    text: str = ""

    def feed(self, piece: str) -> None:
        first = not self.text
        self.text += piece
        if first and self.text and self.text[0] not in '{["-0123456789tfn':
            raise EngineFailed("the engine could not compile this schema; simplify its patterns and limits")

    def finish(self, reason: str) -> None:
        if reason != "stop":
            return
        try:
            json.loads(self.text)
        except ValueError:
            raise EngineFailed("the engine's answer is not the JSON that was asked for; simplify the schema") from None
