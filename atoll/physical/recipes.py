"""Recipes: chains of stages that belong together, sized for two cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from atoll.core.runs import Order, Recipe, Step
from atoll.physical.serve.record import ROBOT


def reinforced(task: str, about: str, gate: dict[str, Any], **settings: Any) -> Recipe:
    """Learn by reinforcement, put to the test, serve under the task's name."""
    return Recipe(
        task,
        about,
        (
            Step("learn", "rl", {"task": task, **settings}),
            Step("judge", "validate", gate, {"policy": "learn"}),
            Step("serve", "serve", {"name": task}, {"policy": "learn", "report": "judge"}),
        ),
    )


def imitated(task: str, about: str, **settings: Any) -> Recipe:
    """Make demonstrations, learn from them, put what was learned to the test, serve it under the task's name."""
    return Recipe(
        task,
        about,
        (
            Step("show", "synth", {"task": task}),
            Step("learn", "imitate", settings, {"dataset": "show"}),
            Step("judge", "validate", {}, {"policy": "learn"}),
            Step("serve", "serve", {"name": task}, {"policy": "learn", "report": "judge"}),
        ),
    )


def compared(order: Order, promoted: Callable[[str], str | None]) -> Order:
    """The order, whose gates compare with what is in service under the name that their policy is to have. `promoted`
    tells its digest, None where there is none."""
    names = {s.inputs.get("report"): s.config.get("name", ROBOT) for s in order.steps if s.stage == "serve"}

    def judged(step: Step) -> Step:
        if step.stage != "validate" or step.name not in names or "incumbent" in step.inputs:
            return step
        digest = promoted(str(names[step.name]))
        return replace(step, inputs={**step.inputs, "incumbent": digest}) if digest else step

    return replace(order, steps=tuple(map(judged, order.steps)))


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        imitated("pick-place", "Ten demonstrations become a thousand; an arm learns from them, and is served."),
        reinforced("reach", "An arm learns to reach a point by trial and error, and is served.", {}, steps=600_000),
        reinforced("half-cheetah", "A cheetah learns to run, and is served.", {"mark": 4000.0}),
    )
}
