"""The commands about regions: `atoll regions`, `atoll route`, `atoll audit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atoll.cli.shared import FILE, JSON, errors, remote, show

if TYPE_CHECKING:
    from atoll.client import Cloud

REGION = click.argument("region")
AXES = ("process_in", "store_in")


@click.group()
def regions() -> None:
    """The regions of the cloud: list, open, drain, close, and try what happens when one breaks."""


@regions.command("list")
@remote
def list_regions(cloud: Cloud, as_json: bool) -> None:
    """Regions, their state and their load."""
    from atoll import terminal

    value = cloud.call("GET", "/atoll/v1/regions")
    if as_json:
        return show(value)
    rows = [
        [
            *(r["id"], r["city"], r["status"], r["served_by"] or "-", "yes" if r["alive"] else "no", r["rtt_ms"]),
            *(r["running"], r["waiting"], f"{r['carbon']:.0f}", " ".join(r["zones"])),
        ]
        for r in value["data"]
    ]
    head = ("ID", "CITY", "STATUS", "SERVED BY", "ALIVE", "RTT MS", "RUNNING", "WAITING", "G CO2/KWH", "ZONES")
    terminal.table(head, rows)


@regions.command("show")
@REGION
@remote
def show_region(cloud: Cloud, as_json: bool, region: str) -> None:
    """One region, with the source of each of its values."""
    value = cloud.call("GET", f"/atoll/v1/regions/{region}")
    if as_json:
        return show(value)
    sources = value.pop("sources")
    for name, told in value.items():
        click.echo(f"{name:20} {told}" + (f"   [{sources[name]}]" if name in sources else ""))


@regions.command("laws")
@click.argument("jurisdiction", required=False)
@remote
def list_laws(cloud: Cloud, as_json: bool, jurisdiction: str | None) -> None:
    """What laws say about where data may go, of one JURISDICTION or all. Editable data, not legal advice."""
    value = cloud.call("GET", "/atoll/v1/laws")
    laws = [law for law in value["data"] if jurisdiction in (None, law["jurisdiction"])]
    if as_json:
        return show({**value, "data": laws})
    for law in laws:
        rule = ", ".join(f"{axis}: {' '.join(law['suggest'][axis])}" for axis in AXES if law["suggest"][axis])
        click.echo(f"{law['jurisdiction']:5} {law['name']}, {law['article']} ({law['as_of']})\n      {law['summary']}")
        click.echo(f"      a rule that keeps clear of it: {rule or 'none is needed'}   {law['source']}")
    click.echo(value["disclaimer"])


def _change(cloud: Cloud, as_json: bool, region: str, status: str) -> None:
    value = cloud.call("PATCH", f"/atoll/v1/regions/{region}", {"status": status})
    if as_json:
        return show(value)
    click.echo(f"{region} is {value['status']}")


@regions.command("build")
@REGION
@remote
def build_region(cloud: Cloud, as_json: bool, region: str) -> None:
    """Say that an announced region is being built. It is not served yet."""
    _change(cloud, as_json, region, "building")


@regions.command("open")
@REGION
@remote
def open_region(cloud: Cloud, as_json: bool, region: str) -> None:
    """Begin to serve a region."""
    _change(cloud, as_json, region, "live")


@regions.command("drain")
@REGION
@remote
def drain_region(cloud: Cloud, as_json: bool, region: str) -> None:
    """Send a region nothing new; what runs there goes on."""
    _change(cloud, as_json, region, "draining")


@regions.command("close")
@REGION
@remote
def close_region(cloud: Cloud, as_json: bool, region: str) -> None:
    """Stop a drained region."""
    _change(cloud, as_json, region, "retired")


@regions.command("drill")
@REGION
@click.argument("kind", type=click.Choice(["kill", "stall", "slow", "partition"]))
@click.option("--seconds", type=click.FloatRange(0, 600, min_open=True), default=10.0, show_default=True)
@remote
def drill_region(cloud: Cloud, as_json: bool, region: str, kind: str, seconds: float) -> None:
    """Break a region for a while, and see that nobody notices."""
    value = cloud.call("POST", f"/atoll/v1/regions/{region}/drill", {"kind": kind, "seconds": seconds})
    if as_json:
        return show(value)
    click.echo(f"{region}: {kind} for {seconds:g} s")


@click.group()
def route() -> None:
    """Why requests go where they go."""


@route.command()
@click.argument("model")
@click.option("--prompt-tokens", type=click.IntRange(0), default=0)
@click.option("--residency", help="A zone set, country or region that must process it.")
@click.option("--client", type=(float, float), metavar="LAT LON", help="Round trips from there, not from the gateway.")
@remote
def explain(
    cloud: Cloud,
    as_json: bool,
    model: str,
    prompt_tokens: int,
    residency: str | None,
    client: tuple[float, float] | None,
) -> None:
    """What would be decided now, with every candidate's score. Nothing is sent."""
    from atoll import terminal

    asked: dict[str, Any] = {"model": model, "prompt_tokens": prompt_tokens}
    if residency:
        asked["residency"] = {"process_in": [residency]}
    if client:
        asked["client"] = {"lat": client[0], "lon": client[1]}
    value = cloud.call("POST", "/atoll/v1/route/explain", asked)
    if as_json:
        return show(value)
    (decision,) = value["decisions"]
    click.echo(decision["reason"])
    estimate = " (an estimate: its card tells none)" if decision["joules_estimated"] else ""
    click.echo(f"energy is weighed at {decision['joules_per_token']:g} J a token{estimate}")
    rows = [
        [c["name"], c["region"], "-" if c["score"] is None else f"{c['score'] * 1000:.1f}", c["reason"]]
        for c in decision["candidates"]
    ]
    terminal.table(("ENDPOINT", "REGION", "SCORE MS", "WHY"), rows)


@route.command()
@click.argument("log", type=FILE)
@JSON
def replay(log: Path, as_json: bool) -> None:
    """Make recorded decisions again; each must come out the same, byte for byte."""
    from random import Random

    from atoll.core.replay import replay as again

    with errors(as_json), log.open("rb") as lines:
        made = list(lines)
        hidden = {"file": sys.stderr, "label": "Replaying", "length": len(made)}
        with click.progressbar(again(made, Random), **hidden) as results:
            different = [number for number, expected, got in results if expected != got]
    if as_json:
        show({"decisions": len(made), "different": different})
    else:
        lines = f"lines {', '.join(map(str, different[:10]))} differ"
        same = "every one the same, byte for byte" if made else "the log is empty"
        told = lines if different else same
        click.echo(f"{len(made)} decisions: {told}")
    if different:
        sys.exit(1)


@click.command()
@remote
def audit(cloud: Cloud, as_json: bool) -> None:
    """Replay the ledger against the residency rules it was served under."""
    rows, found, following = 0, [], {}
    while following is not None:
        value = cloud.call("GET", "/atoll/v1/audit", **following)
        rows, found, following = rows + value["rows"], found + value["data"], value["next"]
    if as_json:
        show({"rows": rows, "violations": found})
    else:
        click.echo(f"{rows} ledger rows, {len(found)} violations")
        for each in found:
            click.echo(f"  {each['entry_id']}  {each['axis']}  {each['reason']}")
    if found:
        sys.exit(1)


COMMANDS = (regions, route, audit)
