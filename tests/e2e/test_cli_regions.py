"""`atoll regions`, `atoll route` and `atoll audit` as an operator types them, while the cloud runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import start
from test_cli import refused, run, told

pytestmark = pytest.mark.xdist_group("cli")

FRANCE, VIRGINIA = "x-fr-1", "us-east-1"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "route.jsonl"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[Any]:
    flags = ("--models", "smollm2-135m", "--regions", f"eu-central-1,{VIRGINIA}")
    running = start(tmp_path_factory.mktemp("regions"), *flags, environment={"ATOLL_ROUTE_LOG": str(log)})
    yield running
    assert running.stop() == 0


def state(cloud: Any, region: str) -> tuple[str, str]:
    row = next(r for r in told(run(cloud, "regions", "list", "--json"))["data"] if r["id"] == region)
    return row["status"], row["served_by"]


def test_a_region_is_shown_opened_drained_and_closed(cloud: Any) -> None:
    shown = run(cloud, "regions", "show", FRANCE).stdout
    assert re.search(r"^status +announced +\[.*https://", shown, re.MULTILINE)
    assert re.search(r"^electricity +0\.\d+ +\[estimate: ", shown, re.MULTILINE)
    assert FRANCE in run(cloud, "regions", "list").stdout
    assert run(cloud, "regions", "build", FRANCE).stdout == "x-fr-1 is building\n"
    assert state(cloud, FRANCE) == ("building", "")
    assert run(cloud, "regions", "open", FRANCE).stdout == "x-fr-1 is live\n"
    assert state(cloud, FRANCE) == ("live", "shared")
    refused(run(cloud, "regions", "close", FRANCE), "is live; from there it can become: draining")
    assert told(run(cloud, "regions", "drain", FRANCE, "--json"))["status"] == "draining"
    run(cloud, "regions", "close", FRANCE)
    assert state(cloud, FRANCE) == ("retired", "")
    refused(run(cloud, "regions", "open", "atlantis"), "there is no region 'atlantis'; see 'atoll regions list'")


def test_keys_take_every_part_of_a_rule(cloud: Any) -> None:
    rule = ("--process-in", "eu,GB", "--store-in", "eu", "--on-unavailable", "queue", "--on-mismatch", "restart")
    made = told(run(cloud, "keys", "create", "ruled", *rule, "--recovery", "fast", "--json"))
    assert made["residency"] == {"process_in": ["eu", "gb"], "store_in": ["eu"], "on_unavailable": "queue"}
    assert (made["on_mismatch"], made["recovery"]) == ("restart", "fast")
    said = run(cloud, "keys", "policy", made["id"], "--process-in", "none", "--on-mismatch", "fail").stdout
    assert "'process_in': []" in said and "'on_unavailable': 'queue'" in said and "on_mismatch: fail" in said


def test_decisions_are_explained_recorded_and_replayed(cloud: Any, log: Path) -> None:
    told(run(cloud, "chat", "hi", "--max-tokens", "4", "--json"))
    explained = run(cloud, "route", "explain", "max", "--residency", "us").stdout
    assert re.search(rf"smollm2-135m@{VIRGINIA} is best of 1", explained)
    assert re.search(r"smollm2-135m@eu-central-1 .* - +residency: region not allowed", explained)
    assert re.search(r"energy is weighed at \S+ J a token", explained)
    far = run(cloud, "route", "explain", "max", "--client", "38.9", "-77.4").stdout
    assert f"smollm2-135m@{VIRGINIA} is best" in far
    wrong = run(cloud, "route", "explain", "max", "--client", "99", "0")
    assert wrong.returncode and "client.lat" in wrong.stderr
    assert "every one the same, byte for byte" in run(cloud, "route", "replay", str(log)).stdout
    other = log.with_name("other.jsonl")
    other.write_text(log.read_text().replace('"cached":0', '"cached":1', 1))
    done = run(cloud, "route", "replay", str(other))
    assert (done.returncode, done.stdout) == (1, "1 decisions: lines 1 differ\n")
    other.write_text("")
    assert run(cloud, "route", "replay", str(other)).stdout == "0 decisions: the log is empty\n"
    assert told(run(cloud, "audit", "--json")) == {"rows": 1, "violations": []}
