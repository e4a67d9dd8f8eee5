"""The commands of the physical loop: a stage, a recipe, runs and what they made."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from atoll.cli.scenes import looking
from atoll.cli.shared import show
from atoll.cli.works import Works, working

STAGES = {
    "sim": "Simulate: roll out a task, with a policy or at random, and film it.",
    "synth": "Synthesise: demonstrations of a task, as a data set.",
    "pictures": "Synthesise: pictures of a task's scene with masks, boxes, key points, poses and depth, to train "
    "perception from.",
    "rl": "Learn a policy by reinforcement.",
    "imitate": "Learn a policy from a data set of demonstrations.",
    "validate": "Put a policy to the test; the gate decides whether it may be served.",
    "serve": "Put a policy that passed the gate into service.",
}

EXAMPLES = {
    "sim": "atoll sim --task reach --from policy=last",
    "synth": "atoll synth --task reach --set demonstrations=5 --set amplify_to=40",
    "pictures": """atoll pictures --task pick-place --count 500 --set 'formats=["coco", "kitti"]'""",
    "rl": "atoll rl --task inverted-pendulum --steps 60000",
    "imitate": "atoll imitate --from dataset=last",
    "validate": "atoll validate --from policy=last --set episodes=100",
    "serve": "atoll serve --from policy=last --from report=last --set name=pole",
}

AMOUNTS = {
    "rl": ("steps", "How long to learn."),
    "imitate": ("steps", "How long to learn."),
    "pictures": ("count", "How many pictures."),
}
"""How much of it: a setting that has an option of its own."""

LAST = {"incumbent": ("kind", "policy"), "dataset": ("stage", "synth"), "demonstrations": ("stage", "synth")}
"""What 'last' means for roles that are not named like the kind they take."""


def ordering(function: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that orders a run."""
    options = (
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all chance in the run."),
        click.option("--ray", default="", help="Do the steps on the Ray cluster at this address ('local' starts one)."),
        click.option("--detach", is_flag=True, help="Do not wait until it is done (needs a running cloud)."),
    )
    for option in reversed(options):
        function = option(function)
    return working(function)


def _stage_command(name: str, about: str) -> click.Command:
    @click.command(name, help=f"{about}\n\n\b\n  {EXAMPLES[name]}\n\n'atoll stages {name}' tells its settings.")
    @click.option("--task", help=f"What is simulated: 'atoll stages {name}' tells the default.")
    @click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the stage.")
    @click.option("--from", "sources", multiple=True, metavar="ROLE=SOURCE", help="Input: a digest, a run, or 'last'.")
    @ordering
    def command(
        works: Works, as_json: bool, task: str | None, settings: tuple[str, ...], sources: tuple[str, ...],
        steps: int | None = None, count: int | None = None, **how: Any,
    ) -> None:  # fmt: skip
        named = {"task": task, "steps": steps, "count": count}
        config = {**{k: v for k, v in named.items() if v is not None}, **dict(map(_setting, settings))}
        inputs = {role: _resolve(works, source, role) for role, source in map(_pair, sources)}
        step = {"name": name, "stage": name, "config": config, "inputs": inputs}
        _order(works, as_json, {"steps": [step]}, **how)

    if name in AMOUNTS:
        amount, meaning = AMOUNTS[name]
        command.params.insert(1, click.Option([f"--{amount}"], type=click.IntRange(1), help=meaning))
    return looking(command) if name == "sim" else command


@click.command()
@click.argument("recipe")
@click.option("--set", "settings", multiple=True, metavar="STEP.KEY=VALUE", help="A setting of a step.")
@ordering
def loop(works: Works, as_json: bool, recipe: str, settings: tuple[str, ...], **how: Any) -> None:
    """Do all steps of RECIPE, from scene to served policy; 'atoll stages' lists recipes."""
    changes: dict[str, dict[str, Any]] = {}
    for key, value in map(_setting, settings):
        step, dot, name = key.partition(".")
        if not dot:
            raise click.BadParameter(f"'{key}' must be STEP.KEY", param_hint="--set")
        changes.setdefault(step, {})[name] = value
    _order(works, as_json, {"recipe": recipe, "set": changes}, **how)


@click.command()
@click.argument("stage", required=False)
@working
def stages(works: Works, as_json: bool, stage: str | None) -> None:
    """Stages and recipes; the settings of one STAGE."""
    from atoll import terminal
    from atoll.core.errors import NotFound

    told = works.stages()
    if stage is None:
        if as_json:
            return show(told)
        rows = [(s["name"], " ".join(s["takes"]) or "-", s["makes"], s["about"]) for s in told["data"]]
        terminal.table(("STAGE", "TAKES", "MAKES", "ABOUT"), rows)
        print()
        chains = [(r["name"], " -> ".join(s["stage"] for s in r["steps"]), r["about"]) for r in told["recipes"]]
        return terminal.table(("RECIPE", "STEPS", "ABOUT"), chains)
    found = next((s for s in told["data"] if s["name"] == stage), None)
    if found is None:
        raise NotFound(f"there is no stage '{stage}'; there are: {', '.join(s['name'] for s in told['data'])}")
    if as_json:
        return show(found)
    print(found["config"].get("description", found["about"]) + "\n")
    fields = found["config"].get("properties", {})
    rows = [(name, _type(f), json.dumps(f["default"]) if "default" in f else "-") for name, f in fields.items()]
    terminal.table(("SETTING", "TYPE", "DEFAULT"), rows)


@click.group()
def runs() -> None:
    """Runs of stages: list, show, follow, cancel, resume."""


@runs.command("list")
@working
def list_runs(works: Works, as_json: bool) -> None:
    """Runs, newest first."""
    from atoll import terminal

    value = works.runs()
    if as_json:
        return show(value)
    rows = [(r["id"], r["name"], r["state"], _stand(r), r["seed"], _when(r["created_at"])) for r in value["data"]]
    terminal.table(("RUN", "NAME", "STATE", "STEPS", "SEED", "ORDERED"), rows)


@runs.command("show")
@click.argument("run")
@working
def show_run(works: Works, as_json: bool, run: str) -> None:
    """Steps, figures and artifacts of RUN."""
    from atoll.cli.watch import tell

    value = works.runs(run)
    show(value) if as_json else tell(value)


@runs.command("follow")
@click.argument("run")
@working
def follow_run(works: Works, as_json: bool, run: str) -> None:
    """Watch RUN until it has ended."""
    _follow(works, as_json, run)


@runs.command("cancel")
@click.argument("run")
@working
def cancel_run(works: Works, as_json: bool, run: str) -> None:
    """Stop RUN. What it has finished stays, and it can be resumed."""
    value = works.change(run, "cancel")
    show(value) if as_json else print(f"{run} is cancelled. Go on with it: atoll runs resume {run}")


@runs.command("resume")
@click.argument("run")
@click.option("--detach", is_flag=True, help="Do not wait until it is done (needs a running cloud).")
@working
def resume_run(works: Works, as_json: bool, run: str, detach: bool) -> None:
    """Go on with a RUN that failed or was cancelled, where it stopped."""
    works.change(run, "resume")
    if detach and not works.local:
        return show(works.runs(run)) if as_json else print(f"{run} goes on. Watch it: atoll runs follow {run}")
    _follow(works, as_json, run)


@click.group()
def artifacts() -> None:
    """What runs have made."""


@artifacts.command("list")
@working
def list_artifacts(works: Works, as_json: bool) -> None:
    """Artifacts, newest first."""
    from atoll import terminal

    value = works.artifacts()
    if as_json:
        return show(value)
    rows = [
        (a["digest"][:12], a["kind"], a["stage"], a["files"], terminal.size(a["bytes"]), _when(a["made_at"]), a["path"])
        for a in value["data"]
    ]
    terminal.table(("DIGEST", "KIND", "STAGE", "FILES", "SIZE", "MADE", "FOLDER"), rows)


@artifacts.command("show")
@click.argument("digest")
@working
def show_artifact(works: Works, as_json: bool, digest: str) -> None:
    """The artifact of that DIGEST (its beginning is enough), its files, and what it was made from."""
    from atoll import terminal

    value = works.artifacts(_resolve(works, digest))
    if as_json:
        return show(value)
    print(f"{value['kind']} {value['digest']}, made by {value['stage']} in {value['path']}\n")
    terminal.table(("SETTING", "VALUE"), [(k, json.dumps(v)) for k, v in value["config"].items()])
    print()
    terminal.table(("FILE", "SHA-256"), [(name, sha[:16]) for name, sha in value["files"].items()])
    print()
    rows = [
        (a["digest"][:12], a["kind"], a["stage"], " ".join(f"{r}={d[:12]}" for r, d in a["parents"].items()))
        for a in value["lineage"]
    ]
    terminal.table(("LINEAGE", "KIND", "STAGE", "MADE FROM"), rows)


def _order(works: Works, as_json: bool, wanted: Mapping[str, Any], seed: int, ray: str, detach: bool) -> None:
    from atoll.core.errors import InvalidRequest

    if detach and works.local:
        raise InvalidRequest("no cloud runs here that could do it meanwhile; start one with 'atoll up'", param="detach")
    row = works.submit({**wanted, "seed": seed, "ray": ray})
    if detach:
        return show(row) if as_json else print(f"{row['id']} is queued. Watch it: atoll runs follow {row['id']}")
    _follow(works, as_json, row["id"])


def _follow(works: Works, as_json: bool, id: str) -> None:
    """Watch a run to its end; exit code 1 unless it is done."""
    from atoll.cli.watch import Watch, tell

    try:
        with Watch(quiet=as_json) as watch:
            for name, data in works.follow(id):
                watch.take(name, data)
    except KeyboardInterrupt:
        if works.local:
            works.change(id, "cancel")
            print(f"\n{id} is cancelled. Go on with it: atoll runs resume {id}", file=sys.stderr)
        else:
            print(f"\n{id} goes on. Watch it: atoll runs follow {id}; stop it: atoll runs cancel {id}", file=sys.stderr)
        raise
    row = works.runs(id)
    show(row) if as_json else tell(row)
    if row["state"] != "done":
        sys.exit(1)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key and value):
        raise click.BadParameter(f"'{text}' must have a name, '=' and a value")
    return key, value


def _setting(text: str) -> tuple[str, Any]:
    """The value as JSON where it is JSON, as text otherwise."""
    key, value = _pair(text)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _resolve(works: Works, source: str, role: str = "") -> str:
    """The digest that `source` means: of an artifact by its beginning, of what a run made last, or of the last that was
    made that fits `role`."""
    from atoll.core.errors import NotFound

    if source.startswith("run_"):
        made = [step["digest"] for step in works.runs(source)["steps"] if step["digest"]]
        if not made:
            raise NotFound(f"{source} has made nothing yet")
        return made[-1]
    if len(source) == 64:
        return source
    rows = works.artifacts()["data"]
    column, value = LAST.get(role, ("kind", role))
    found = [a["digest"] for a in rows if (a[column] == value if source == "last" else a["digest"].startswith(source))]
    if not found or (len(found) > 1 and source != "last"):
        raise NotFound(f"{len(found) or 'no'} artifacts are meant by '{source}'; see 'atoll artifacts list'")
    return found[0]


def _type(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"])
    return str(field.get("type") or ", ".join(map(str, field.get("enum", ()))) or field.get("$ref", "").split("/")[-1])


def _stand(row: Mapping[str, Any]) -> str:
    return " ".join(f"{step['name']}:{step['state']}" for step in row["steps"])


def _when(seconds: float) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


COMMANDS = (*(_stage_command(name, about) for name, about in STAGES.items()), loop, stages, runs, artifacts)
