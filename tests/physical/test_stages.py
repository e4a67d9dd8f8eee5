"""The stages and recipes by name: known without what they work with, and fitting each other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from atoll.cli.physical import _resolve
from atoll.core.errors import NotFound, NotInstalled
from atoll.core.runs import Step, check_order, order_of
from atoll.jobs.steps import configure, schema, seeded
from atoll.physical.recipes import RECIPES, compared
from atoll.physical.stages import STAGES, load_stage


def test_a_cloud_that_only_tells_of_stages_does_not_carry_torch() -> None:
    code = (
        "import sys; from atoll.physical.stages import STAGES, load_stage; [load_stage(name) for name in STAGES];"
        "print([m for m in ('torch', 'gymnasium', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_what_its_name_says(name: str) -> None:
    stage = load_stage(name)
    assert stage.name == name and stage.about
    assert schema(stage)["type"] == "object"
    configure(stage, {})


class Made:
    """Works in which every stage has made something, `pictures` last."""

    def artifacts(self) -> dict[str, list[dict[str, str]]]:
        made = [load_stage(name) for name in ("pictures", *(name for name in STAGES if name != "pictures"))]
        return {"data": [{"digest": s.name, "kind": s.makes, "stage": s.name} for s in made]}


@pytest.mark.parametrize(("stage", "role"), [(s, role) for s in STAGES for role in sorted(load_stage(s).roles)])
def test_the_last_that_fits_is_found_for_every_role(stage: str, role: str) -> None:
    fits = {"policy": "rl", "incumbent": "rl", "report": "validate", "dataset": "synth", "demonstrations": "synth"}
    assert _resolve(Made(), "last", role) == fits[role]


@pytest.mark.parametrize("name", RECIPES)
def test_the_steps_of_a_recipe_fit(name: str) -> None:
    order = order_of({"recipe": name, "seed": 3}, RECIPES)
    check_order(order, {step.stage: load_stage(step.stage) for step in order.steps})
    for step in order.steps:
        configure(load_stage(step.stage), seeded(load_stage(step.stage), step.config, order.seed))


def test_a_gate_compares_with_what_is_in_service() -> None:
    order = order_of({"recipe": "pick-place", "set": {"serve": {"name": "arm"}}}, RECIPES)
    steps = {step.name: step for step in compared(order, {"arm": "a" * 64}.get).steps}
    assert steps["judge"].inputs == {"policy": "learn", "incumbent": "a" * 64}
    assert compared(order, {"pick-place": "a" * 64}.get) == order
    judge = Step("judge", "validate", {}, {"policy": "b" * 64, "incumbent": "c" * 64})
    given = replace(order, steps=(judge, order.steps[-1]))
    assert compared(given, {"arm": "a" * 64}.get) == given


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no stage 'fly'; there are: sim"):
        load_stage("fly")
    monkeypatch.setitem(STAGES, "away", "nowhere_at_all:STAGE")
    with pytest.raises(NotInstalled, match="'nowhere_at_all' is not installed; run: make physical"):
        load_stage("away")
