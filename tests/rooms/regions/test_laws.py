"""The table of laws: every place of the catalogue is in it, and bad entries are refused by line and rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.core.errors import SetupError
from atoll.core.residency import allowed
from atoll.regions.catalogue import read_catalogue
from atoll.regions.laws import DISCLAIMER, FILE, laws_of, read_laws

CATALOGUE = read_catalogue()
ZONES = [zone.name for zone in CATALOGUE.zones]
REGIONS = {region.id: region for region in CATALOGUE.regions}

GOOD = """\
[[laws]]
jurisdiction = "eu"
name = "GDPR"
article = "44"
summary = "Data stay, or leave under safeguards."
suggest = { process_in = ["eea", "jp"] }
source = "https://eur-lex.europa.eu"
as_of = "2026"
"""


def test_every_place_of_the_catalogue_has_a_law() -> None:
    laws = read_laws(ZONES)
    for region in CATALOGUE.regions:
        assert laws_of(laws, region), region.id
    assert {law.name[:4] for law in laws_of(laws, REGIONS["x-fr-1"])} == {"Gene"}
    assert [law.article for law in laws_of(laws, REGIONS["cn-beijing"])] == ["38 to 40", "31"]


def test_what_is_suggested_can_be_put_on_a_key() -> None:
    for law in read_laws(ZONES):
        places = allowed(law.suggest, REGIONS)
        assert places.process_in and places.store_in
    china = next(law for law in read_laws(ZONES) if law.jurisdiction == "CN")
    assert allowed(china.suggest, REGIONS).store_in == {r.id for r in CATALOGUE.regions if r.country == "CN"}


def test_each_law_suggests_only_places_that_hold_its_own() -> None:
    """A region under a law may always keep what it has."""
    for law in read_laws(ZONES):
        places = allowed(law.suggest, REGIONS)
        own = {r.id for r in CATALOGUE.regions if law in laws_of([law], r)}
        assert own <= places.process_in and own <= places.store_in, law.name


def test_it_says_that_it_is_no_advice() -> None:
    assert "not legal advice" in DISCLAIMER
    assert "NOT LEGAL ADVICE" in FILE.read_text().split("[[laws]]")[0]


def test_an_operators_own(tmp_path: Path) -> None:
    path = tmp_path / "laws.toml"
    path.write_text(GOOD)
    (law,) = read_laws(ZONES, path)
    assert law.suggest.process_in == ("eea", "jp") and law.suggest.store_in == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ('"eu"', '"europe"', 2, "ISO 3166 country code or a zone set (apac"),
        ('name = "GDPR"\n', "", 1, "'name' is missing"),
        ('"44"', "44", 4, "'article' must be a text"),
        ("safeguards.", "safeguards", 5, "one sentence"),
        ("stay, or", "stay. Or", 5, "one sentence"),
        ("Data", "Data " * 80, 5, "at most 300"),
        ('"eea", "jp"', '"mars"', 6, "'mars' is neither a zone set"),
        ('"eea", "jp"', '"jp", "jp"', 6, "names something twice"),
        ("process_in", "process", 6, "unknown key 'process'"),
        ('{ process_in = ["eea", "jp"] }', '"eu"', 6, "must be a table"),
        ("https://", "", 7, "web address"),
        ('"2026"', '"today"', 8, "must be a date"),
        ("as_of", "date", 8, "unknown key 'date'"),
        ("[[laws]]", "[laws]", 1, "must be a list of tables"),
        ('"44"', '"44', 4, "not valid TOML"),
    ],
)
def test_refused_by_line_and_rule(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    path = tmp_path / "laws.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(SetupError) as caught:
        read_laws(ZONES, path)
    assert caught.value.message.startswith(f"{path}, line {line}: "), caught.value.message
    assert says in caught.value.message
