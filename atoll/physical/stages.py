"""The stages of the physical loop by name: scene -> simulate -> synthesise -> train -> validate -> serve."""

from __future__ import annotations

from importlib import import_module

from atoll.core.errors import NotFound, NotInstalled
from atoll.core.runs import Stage

STAGES: dict[str, str] = {
    "sim": "atoll.physical.sim.stage:STAGE",
    "synth": "atoll.physical.synth.stage:STAGE",
    "pictures": "atoll.physical.synth.pictures:STAGE",
    "rl": "atoll.physical.rl.stage:STAGE",
    "imitate": "atoll.physical.imitation.stage:STAGE",
    "validate": "atoll.physical.validate.stage:STAGE",
    "serve": "atoll.physical.serve.stage:STAGE",
}


def load_stage(name: str) -> Stage:
    """The stage of that name. Raises NotFound, or NotInstalled where the extra `physical` is missing."""
    if name not in STAGES:
        raise NotFound(f"there is no stage '{name}'; there are: {', '.join(STAGES)}", param="stage")
    module, _, attribute = STAGES[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("atoll"):
            raise
        raise NotInstalled(f"'{error.name}' is not installed; run: make physical") from None
