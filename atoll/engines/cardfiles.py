"""Cards on disk: the ones that come with Atoll, and the user's own in the data folder."""

from __future__ import annotations

import tomllib
from pathlib import Path

from atoll.core.cards import Card, parse_card
from atoll.core.errors import SetupError

EMBEDDED = Path(__file__).parent / "cards"


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
