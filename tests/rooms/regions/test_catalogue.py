"""The catalogue that is shipped, and catalogues that are refused by line and rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from atoll.core.errors import SetupError
from atoll.core.residency import resolve
from atoll.regions.catalogue import SOURCED, read_catalogue, read_regions

ZONES = ("eu", "eea", "uk", "us", "cn", "global-ex-cn", "apac", "latam", "mena")
GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "regions.md"

GOOD = """\
[zones.eu]
means = "The Union"
countries = ["DE", "FR"]

[zones.global-ex-cn]
means = "All but China"
except = ["CN"]

[sources.mine]
title = "Our sites"
url = "https://example.com/sites"
date = "2026-11"

[defaults]
city = "mine"
country = "mine"
lat = "mine"
lon = "mine"
status = "mine"
availability_zones = "mine"
carbon = "estimate: the country's average"

[[regions]]
id = "leipzig-1"
city = "Leipzig"
country = "DE"
lat = 51.34
lon = 12.37
status = "live"
availability_zones = 1
carbon = 381
electricity = 0.18
sources = { electricity = "mine" }

[[regions]]
id = "wuxi-1"
city = "Wuxi"
country = "CN"
lat = 31.49
lon = 120.31
status = "announced"
availability_zones = 2
carbon = 582.7
electricity = 0.09
[regions.sources]
electricity = "estimate: our offer"
"""


def line_of(text: str, wanted: str, nth: int = 0) -> int:
    return [n for n, line in enumerate(text.splitlines(), 1) if line.startswith(wanted)][nth]


@pytest.fixture
def refused(tmp_path: Path):
    def read(text: str) -> str:
        path = tmp_path / "sites.toml"
        path.write_text(text)
        with pytest.raises(SetupError) as caught:
            read_catalogue(path)
        assert caught.value.message.startswith(f"{path}, line ")
        return caught.value.message.removeprefix(f"{path}, ")

    return read


def test_what_is_shipped() -> None:
    regions = {region.id: region for region in read_regions()}
    live = [r for r in regions.values() if r.status == "live"]
    announced = [r for r in regions.values() if r.status == "announced"]
    assert (len(live), len(announced), len(regions)) == (29, 8, 37)
    assert sum(r.country == "CN" for r in live) == 14
    assert {r.country for r in announced} == {"FR", "NL", "BR", "MX", "JP", "KR", "MY", "AE"}
    assert "Dubai" in {r.city for r in announced}
    assert 80 <= sum(r.availability_zones for r in live) <= 100
    assert regions["cn-chengdu"].carbon == 156.4
    assert regions["x-fr-1"].carbon == 56.0


def test_every_value_shipped_has_a_source() -> None:
    for region in read_regions():
        told = dict(region.sources)
        assert set(told) == set(SOURCED)
        for source in told.values():
            assert source.startswith("estimate: ") or re.search(r"\(\d{4}[-\d]*\), https?://", source), source


def test_zone_sets_shipped() -> None:
    regions = {region.id: region for region in read_regions()}
    held = {zone: resolve([zone], regions) for zone in ZONES}
    assert held["eu"] == held["eea"] == {"eu-central-1", "x-fr-1", "x-nl-1"}
    assert held["uk"] == {"eu-west-1"}
    assert held["us"] == {"us-east-1", "us-west-1"}
    assert held["latam"] == {"na-south-1", "x-mx-2", "x-br-1"}
    assert held["mena"] == {"me-east-1", "me-central-1", "x-ae-2"}
    assert "cn-hongkong" in held["apac"] & held["global-ex-cn"]
    assert held["cn"] == {r.id for r in regions.values() if r.country == "CN"}
    assert held["cn"] | held["global-ex-cn"] == set(regions)
    assert not held["cn"] & (held["global-ex-cn"] | held["apac"])
    assert all(zone.means for zone in read_catalogue().zones)


def test_an_operators_own(tmp_path: Path) -> None:
    path = tmp_path / "sites.toml"
    path.write_text(GOOD)
    leipzig, wuxi = read_regions(path)
    assert leipzig.zones == ("eu", "global-ex-cn") and wuxi.zones == ()
    assert leipzig.jurisdiction == "DE"
    assert dict(leipzig.sources)["electricity"] == "Our sites (2026-11), https://example.com/sites"
    assert dict(wuxi.sources)["electricity"] == "estimate: our offer"
    assert dict(wuxi.sources)["carbon"] == "estimate: the country's average"


def test_the_guides_example_is_one(tmp_path: Path) -> None:
    example = GUIDE.read_text().split("```toml\n")[1].split("```")[0]
    path = tmp_path / "sites.toml"
    path.write_text(example)
    assert [region.id for region in read_regions(path)] == ["leipzig-1"]
    bad = example.replace("lat = 51.34", "lat = 513.4")
    path.write_text(bad)
    with pytest.raises(SetupError) as caught:
        read_regions(path)
    assert caught.value.message.replace(str(path), "sites.toml") in GUIDE.read_text()


# (what to replace, by what, where the line of the message begins, what it says)
BAD = [
    ('id = "wuxi-1"', 'id = "leipzig-1"', ("id =", 1), "ids are unique"),
    ('id = "wuxi-1"', 'id = "Wuxi_1"', ("id =", 1), "3 to 64 lower-case letters"),
    ('id = "wuxi-1"', 'id = "eu"', ("id =", 1), "an id is 3 to 64"),
    ('id = "wuxi-1"', 'id = "global"', ("id =", 1), "not the name of a zone set"),
    ('id = "wuxi-1"', 'id = "global-ex-cn"', ("id =", 1), "not the name of a zone set"),
    ('id = "wuxi-1"\n', "", ("[[regions]]", 1), "'id' is missing"),
    ('id = "wuxi-1"', "id = 7", ("id =", 1), "'id' must be a text"),
    ('city = "Wuxi"', 'city = " "', ("city =", 2), "'city' must be a text that is not empty"),
    ('country = "CN"', 'country = "China"', ("country =", 2), "ISO 3166"),
    ('country = "CN"', 'country = "XX"', ("country =", 2), "ISO 3166"),
    ('country = "CN"', 'country = "cn"', ("country =", 2), "ISO 3166"),
    ('country = "CN"', 'country = "CN"\njurisdiction = "EU"', ("jurisdiction =", 0), "'jurisdiction' must be an ISO"),
    ("lat = 31.49", "lat = 91", ("lat =", 2), "'lat' must be a number from -90 to 90, not 91"),
    ("lat = 31.49", "lat = nan", ("lat =", 2), "'lat' must be a number"),
    ("lat = 31.49", "lat = true", ("lat =", 2), "'lat' must be a number"),
    ("lat = 31.49", 'lat = "31.49"', ("lat =", 2), "'lat' must be a number"),
    ("lon = 120.31", "lon = -180.5", ("lon =", 2), "from -180 to 180"),
    ("carbon = 582.7", "carbon = -1", ("carbon =", 2), "from 0 to 2000"),
    ("carbon = 582.7", "carbon = inf", ("carbon =", 2), "from 0 to 2000"),
    ("electricity = 0.09", "electricity = 90", ("electricity =", 1), "from 0 to 5"),
    ("electricity = 0.09\n", "", ("[[regions]]", 1), "'electricity' is missing"),
    ("availability_zones = 2", "availability_zones = 0", ("availability_zones =", 2), "from 1 to 100"),
    ("availability_zones = 2", "availability_zones = 1.5", ("availability_zones =", 2), "whole number"),
    ('status = "announced"', 'status = "planned"', ("status =", 2), "one of announced, building, live"),
    ('city = "Wuxi"', 'city = "Wuxi"\ncolour = "red"', ("colour =", 0), "unknown key 'colour'; known: id, city"),
    ('electricity = "estimate: our offer"', "", ("electricity =", 1), "'electricity' has no source"),
    ('electricity = "estimate: our offer"', 'electricity = "theirs"', ("electricity =", 2), "'theirs' is neither"),
    ('electricity = "estimate: our offer"', 'electricity = "estimate: "', ("electricity =", 2), "is neither"),
    ('electricity = "estimate: our offer"', 'zones = "mine"', ("zones =", 0), "takes no source"),
    ('{ electricity = "mine" }', '{ electricity = "their" }', ("sources =", 0), "'their' is neither"),
    ('{ electricity = "mine" }', "7", ("sources =", 0), "must be a table"),
    ('lat = "mine"', 'lat = "nobody"', ("lat =", 0), "the source of 'lat' must be one of mine"),
    ('lat = "mine"', 'latitude = "mine"', ("latitude =", 0), "'latitude' takes no source"),
    ('lat = "mine"\n', "", ("lat =", 0), "'lat' has no source"),
    ('url = "https://example.com/sites"', 'url = "example.com"', ("url =", 0), "must be a web address"),
    ('date = "2026-11"', 'date = "November"', ("date =", 0), "must be a date"),
    ('date = "2026-11"', 'date = "2026-13"', ("date =", 0), "must be a date"),
    ('date = "2026-11"', "date = 2026-11-24", ("date =", 0), "must be a date"),
    ('title = "Our sites"\n', "", ("[sources.mine]", 0), "'title' is missing"),
    ('countries = ["DE", "FR"]', 'countries = ["DE", "EL"]', ("countries =", 0), "'EL' is not an ISO 3166"),
    ('countries = ["DE", "FR"]', 'countries = ["DE", "DE"]', ("countries =", 0), "names something twice"),
    ('countries = ["DE", "FR"]', "countries = []", ("[zones.eu]", 0), "'countries', 'regions' or both"),
    ('countries = ["DE", "FR"]', "", ("[zones.eu]", 0), "'countries', 'regions' or both"),
    ('countries = ["DE", "FR"]', 'countries = "DE"', ("countries =", 0), "must be a list of texts"),
    ('countries = ["DE", "FR"]', 'regions = ["nowhere-1"]', ("regions =", 0), "there is no region 'nowhere-1'"),
    ('except = ["CN"]', 'except = ["CN"]\ncountries = ["DE"]', ("[zones.global", 0), "or else only 'except'"),
    ("[zones.eu]", "[zones.EU]", ("[zones.EU]", 0), "a zone set is named with lower-case letters"),
    ("[zones.eu]", "[zones.global]", ("[zones.global]", 0), "not 'global'"),
    ("[zones.eu]", "[zones.de]", ("[zones.de]", 0), "it may hold DE and no more"),
    ('means = "The Union"\n', "", ("[zones.eu]", 0), "'means' is missing"),
    ("[defaults]", "[default]", ("[default]", 0), "unknown key 'default'; known: zones, sources, regions, defaults"),
    ("lon = 120.31", "lon = ", ("lon =", 2), "not valid TOML: Invalid value"),
    ("lon = 120.31", "lon = 1\nlon = 2", ("lon =", 3), "not valid TOML: Cannot overwrite a value"),
    ('city = "Wuxi"', 'city = "Wuxi', ("city =", 2), "not valid TOML"),
]


@pytest.mark.parametrize(("old", "new", "where", "says"), BAD, ids=lambda part: str(part)[:40])
def test_refused_by_line_and_rule(refused, old: str, new: str, where: tuple[str, int], says: str) -> None:
    assert GOOD.count(old) >= 1
    head, _, tail = GOOD.rpartition(old)
    text = head + new + tail
    message = refused(text)
    assert message.startswith(f"line {line_of(text, *where)}: "), message
    assert says in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'zones' is missing"),
        ("zones = 1\nsources = 2\nregions = 3\n", "line 2: 'sources' must be a table"),
        ("zones = 1\nsources = {}\nregions = []\n", "line 1: 'zones' must be a table"),
        ("zones = {}\nsources = {}\nregions = []\n", "line 3: 'regions' must be a list of at least one"),
        ("zones = {}\nsources = {}\nregions = [7]\n", "line 3: 'regions.0' must be a table"),
        ("zones = {}\nsources = {a = 7}\nregions = [7]\n", "line 2: 'sources.a' must be a table"),
        ('zones = {}\n\n[[regions]]\nid = """', "line 4: not valid TOML"),
    ],
)
def test_refused_as_a_whole(refused, text: str, says: str) -> None:
    assert says in refused(text)


@pytest.mark.parametrize("value", ["7", "true", "nan", '"x"', "[]", "[1]", '[["x"]]', "{}", "{ a = [] }", "07:32:00"])
def test_no_value_of_a_wrong_kind_gets_past_the_rules(tmp_path: Path, value: str) -> None:
    """Whatever stands behind a key, the file is read or refused: nothing else is raised."""
    path, text = tmp_path / "sites.toml", GOOD.replace('city = "Wuxi"', 'city = "Wuxi"\njurisdiction = "CN"')
    refusals = 0
    for line in dict.fromkeys(line for line in text.splitlines() if " = " in line):
        path.write_text(text.replace(line, f"{line.split(' = ')[0]} = {value}"))
        try:
            read_catalogue(path)
        except SetupError:
            refusals += 1
    assert refusals > 20


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot read .*none\.toml: No such file"):
        read_regions(tmp_path / "none.toml")
    with pytest.raises(SetupError, match="cannot read"):
        read_regions(tmp_path)
    (tmp_path / "latin.toml").write_bytes("# S\u00e3o Paulo".encode("latin-1"))
    with pytest.raises(SetupError, match="not UTF-8 text, from byte 3 on"):
        read_regions(tmp_path / "latin.toml")
