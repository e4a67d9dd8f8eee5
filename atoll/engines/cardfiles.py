"""Cards on disk: the ones that come with Atoll, and the user's own in the data folder."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll.core.cards import Card, card_table, parse_card
from atoll.core.errors import SetupError

EMBEDDED = Path(__file__).parent / "cards"
CATALOGUE = EMBEDDED / "hub"


def read_card(path: Path) -> Card:
    """Raises SetupError naming the file, the key and the rule."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"cannot read the model card {path}: {error}") from None
    return parse_card(table, path.name)


def read_cards(folder: Path) -> dict[str, Card]:
    """All cards of a folder by id. Raises SetupError, also when two have the same id."""
    cards: dict[str, Card] = {}
    for path in sorted(folder.glob("*.toml")):
        card = read_card(path)
        if card.id in cards:
            raise SetupError(f"{path.name}: another card in {folder} has the id '{card.id}' too")
        cards[card.id] = card
    return cards


def card_text(card: Card) -> str:
    """The TOML file from which `read_card` reads an equal card; what has its default is left out."""
    scalars, tables = [], []
    for name, value in card_table(card).items():
        if isinstance(value, Mapping):
            tables.append("\n".join([f"\n[{name}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]))
        else:
            scalars.append(f"{name} = {_toml(value)}")
    return "\n".join([*scalars, *tables]) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once: a reader, or a crash, sees the old content or the new. Raises SetupError."""
    draft = path.with_name(path.name + ".tmp")
    try:
        with draft.open("w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from error


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
