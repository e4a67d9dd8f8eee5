"""Recipes by name: chains of stages that belong together."""

from __future__ import annotations

from atoll.core.runs import Recipe

RECIPES: dict[str, Recipe] = {}
