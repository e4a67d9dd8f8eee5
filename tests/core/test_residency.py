"""Residency: what a rule means, what a request may ask of a key, and whether the ledger kept to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import InvalidRequest
from atoll.core.places import Region, Residency
from atoll.core.residency import (
    Allowed,
    allowed,
    narrow,
    parse,
    parse_rule,
    render,
    requested,
    resolve,
    split_prefix,
    violations,
)
from atoll.core.types import Entry, Usage


def region(id: str, country: str, *zones: str) -> Region:
    return Region(id, id, country, 0.0, 0.0, "live", jurisdiction=country, zones=zones)


REGIONS = {
    r.id: r
    for r in (
        region("eu-central-1", "DE", "eu", "global-ex-cn"),
        region("x-fr-1", "FR", "eu", "global-ex-cn"),
        region("eu-west-1", "GB", "global-ex-cn"),
        region("us-east-1", "US", "us", "global-ex-cn"),
        region("cn-beijing", "CN", "cn"),
        region("cn-hongkong", "HK", "cn-hk", "global-ex-cn"),
    )
}
EU = Residency(("eu",), ("eu",))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), set(REGIONS)),
        (("global",), set(REGIONS)),
        (("eu",), {"eu-central-1", "x-fr-1"}),
        (("EU",), {"eu-central-1", "x-fr-1"}),
        (("de", "FR"), {"eu-central-1", "x-fr-1"}),
        (("us", "cn-hongkong"), {"us-east-1", "cn-hongkong"}),
        (("cn",), {"cn-beijing"}),
        (("global-ex-cn",), set(REGIONS) - {"cn-beijing"}),
    ],
)
def test_names_of_regions_zone_sets_and_countries(names: tuple[str, ...], expected: set[str]):
    assert resolve(names, REGIONS) == expected


def test_an_unknown_name_is_refused_with_what_is_known():
    with pytest.raises(InvalidRequest, match=r"'mars', which is not known here; known are: zone sets .*eu, global.*FR"):
        resolve(("eu", "mars"), REGIONS)


def test_a_country_cannot_widen_a_zone_set_of_the_same_name():
    odd = {**REGIONS, "cn-far": region("cn-far", "EU")}
    assert "cn-far" not in resolve(("eu",), odd)


def test_without_regions_nothing_is_allowed():
    assert allowed(Residency(), {}) == Allowed(frozenset(), frozenset())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Residency()),
        ("eu", EU),
        (["EU ", "us", "eu"], Residency(("eu", "us"), ("eu", "us"))),
        ({"process_in": "eu"}, Residency(("eu",))),
        ({"store_in": ["us"], "on_unavailable": "queue"}, Residency((), ("us",), "queue")),
        ({"process_in": None}, Residency()),
        ({}, Residency()),
    ],
)
def test_what_requests_may_write(value: object, expected: Residency):
    assert parse(value) == expected


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (7, "residency"),
        ([], "residency"),
        ("", "residency"),
        (["eu", 1], "residency"),
        ({"process_in": []}, "residency.process_in"),
        ({"store_in": {"eu": 1}}, "residency.store_in"),
        ({"process_in": "a b"}, "residency.process_in"),
        ({"process_in": "eu,us"}, "residency.process_in"),
        ({"proces_in": "eu"}, "residency"),
        ({"on_unavailable": "wait"}, "residency.on_unavailable"),
    ],
)
def test_a_bad_rule_names_its_field(value: object, field: str):
    with pytest.raises(InvalidRequest) as refused:
        parse(value)
    assert refused.value.param == field


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("eu.max", (EU, "max")),
        ("us.qwen3-4b", (Residency(("us",), ("us",)), "qwen3-4b")),
        ("global.max", (Residency(("global",)), "max")),
        ("qwen2.5-7b", (None, "qwen2.5-7b")),
        ("eu.", (None, "eu.")),
        ("eu", (None, "eu")),
        ("EU.max", (None, "EU.max")),
    ],
)
def test_model_prefixes(model: str, expected: tuple[Residency | None, str]):
    assert split_prefix(model) == expected


def test_a_request_narrows_its_key():
    assert narrow(Residency(), EU, REGIONS) == EU
    assert narrow(EU, Residency(), REGIONS) == EU
    assert narrow(EU, Residency(("de", "x-fr-1")), REGIONS) == EU
    assert narrow(EU, Residency(("de",), (), "queue"), REGIONS) == Residency(("eu-central-1",), ("eu",), "queue")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Residency(("us",)), "residency.process_in"),
        (Residency(("eu", "us")), "residency.process_in"),
        (Residency(("global",)), "residency.process_in"),
        (Residency((), ("us",)), "residency.store_in"),
        (Residency(("eu",), ("mars",)), "residency.store_in"),
    ],
)
def test_a_request_never_widens_its_key(request_: Residency, field: str):
    with pytest.raises(InvalidRequest) as refused:
        narrow(EU, request_, REGIONS)
    assert refused.value.param == field


def test_a_zone_set_that_grows_during_a_request_stays_within_the_key():
    key = Residency(("eu-central-1", "x-fr-1", "us"))
    rule = narrow(key, Residency(("eu",)), REGIONS)
    grown = {**REGIONS, "x-nl-1": region("x-nl-1", "NL", "eu")}
    assert allowed(rule, grown).process_in <= allowed(key, grown).process_in


def test_prefix_alias_and_object_narrow_one_after_the_other():
    body = {"model": "eu.max", "data_residency": ["de", "fr"], "residency": {"process_in": "DE"}}
    assert requested(Residency(), body, REGIONS) == (Residency(("eu-central-1",), ("eu",)), "max")
    assert requested(Residency((), (), "queue"), {"model": "max"}, REGIONS) == (Residency((), (), "queue"), "max")
    kept = requested(replace(EU, on_unavailable="queue"), {"model": "m", "residency": {"store_in": "de"}}, REGIONS)[0]
    assert kept == Residency(("eu",), ("eu-central-1",), "queue")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "us.max"}, "model"),
        ({"model": "global.max"}, "model"),
        ({"model": "max", "data_residency": "us"}, "data_residency"),
        ({"model": "max", "residency": "us"}, "residency.process_in"),
        ({"model": "eu.max", "residency": {"store_in": "us"}}, "residency.store_in"),
    ],
)
def test_a_refusal_names_where_the_wish_was_written(body: dict, field: str):
    with pytest.raises(InvalidRequest) as refused:
        requested(EU, body, REGIONS)
    assert refused.value.param == field
    assert refused.value.code == "data_residency_mismatch"


NAMES = st.sampled_from(["eu", "us", "cn", "global-ex-cn", "global", "de", "GB", *REGIONS])
RULES = st.builds(
    Residency,
    st.lists(NAMES, max_size=3).map(tuple),
    st.lists(NAMES, max_size=3).map(tuple),
    st.sampled_from(["reject", "queue"]),
)


@given(RULES, st.lists(RULES, max_size=3))
def test_no_chain_of_requests_gets_a_region_that_the_key_does_not_allow(key: Residency, requests: list[Residency]):
    rule, bounds = key, allowed(key, REGIONS)
    for request in requests:
        try:
            rule = narrow(rule, request, REGIONS)
        except InvalidRequest:
            continue
        now, asked = allowed(rule, REGIONS), allowed(request, REGIONS)
        assert now.process_in <= bounds.process_in & asked.process_in
        assert now.store_in <= bounds.store_in & asked.store_in
        bounds = now


@given(RULES)
def test_text_for_the_ledger_means_the_same_rule(rule: Residency):
    again = parse_rule(render(rule))
    assert allowed(again, REGIONS) == allowed(rule, REGIONS)
    assert again.on_unavailable == rule.on_unavailable
    assert render(again) == render(rule)


def test_text_for_the_ledger():
    assert render(Residency()) == "anywhere"
    rule = Residency(("us", "eu"), ("eu",), "queue")
    assert render(rule) == "process_in=eu,us store_in=eu on_unavailable=queue"
    for broken in ("", "eu", "process_in=", "process_in=eu stor_in=eu", "on_unavailable=never"):
        with pytest.raises(InvalidRequest):
            parse_rule(broken)


def row(**changes: object) -> Entry:
    kept = Entry(
        "r1", "k1", "max", "x-fr-1", "/v1/chat/completions", 0.0, "done", Usage(10, 60),
        path="eu-central-1:40 x-fr-1:20", stored_in="eu-central-1", rule="process_in=eu store_in=eu",
    )  # fmt: skip
    return kept._replace(**changes)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (row(), []),
        (row(rule="anywhere", stored_in=""), []),
        (row(rule="", path="", stored_in="", region="us-east-1"), []),
        (row(status="failed", region="", path="", usage=Usage()), []),
        (row(status="cancelled", usage=Usage(10, 59)), []),
        (row(path="us-east-1:40 x-fr-1:20"), [("process_in", "us-east-1")]),
        (row(region="us-east-1", path="us-east-1:60"), [("process_in", "us-east-1")]),
        (row(region="us-east-1", path=""), [("process_in", "us-east-1")]),
        (row(region="x-old-1", path="x-old-1:60", rule="anywhere"), [("process_in", "x-old-1")]),
        (row(stored_in="us-east-1"), [("store_in", "us-east-1")]),
        (row(stored_in=""), [("store_in", "")]),
        (row(region="eu-central-1"), [("path", "eu-central-1")]),
        (row(path="eu-central-1:40 x-fr-1:19"), [("path", "x-fr-1")]),
        (row(path="eu-central-1 x-fr-1:20"), [("path", "")]),
        (row(rule="process_in=mars"), [("rule", "")]),
        (row(rule=""), [("rule", "")]),
    ],
)
def test_the_audit(entry: Entry, expected: list[tuple[str, str]]):
    assert [(v.axis, v.region) for v in violations([entry], REGIONS)] == expected


@given(RULES, st.lists(st.sampled_from(sorted(REGIONS)), min_size=1, max_size=4), st.sampled_from(sorted(REGIONS)))
def test_the_audit_finds_a_violation_exactly_where_the_rule_is_broken(rule: Residency, visited: list[str], kept: str):
    path = " ".join(f"{r}:5" for r in visited)
    entry = row(rule=render(rule), path=path, region=visited[-1], stored_in=kept, usage=Usage(1, 5 * len(visited)))
    places = allowed(rule, REGIONS)
    found = {(v.axis, v.region) for v in violations([entry], REGIONS)}
    expected = {("process_in", r) for r in visited if r not in places.process_in}
    assert found == expected | ({("store_in", kept)} if kept not in places.store_in else set())
