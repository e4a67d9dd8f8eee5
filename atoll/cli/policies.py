"""The commands about robot policies: `atoll policies`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atoll.cli.shared import remote, show

if TYPE_CHECKING:
    from atoll.client import Cloud

NAME = click.argument("name")


@click.group()
def policies() -> None:
    """Robot policies in service: promote one that passed its gate, roll back, stop, release."""


@policies.command("list")
@remote
def list_policies(cloud: Cloud, as_json: bool) -> None:
    """Policies, what is promoted, and whether they are stopped."""
    from atoll import terminal

    value = cloud.call("GET", "/atoll/v1/policies")
    if as_json:
        return show(value)
    columns = ("NAME", "TASK", "STATE", "VERSION", "RATE HZ", "SESSIONS", "ANSWERED", "DETAIL")
    terminal.table(columns, [_row(row) for row in value["data"]])


def _row(row: dict[str, Any]) -> list[Any]:
    manifest, promoted = row["manifest"] or {}, row["promoted"] or {"policy": "-"}
    stop = f"stopped by {row['stop']['by']}: {row['stop']['reason']}" if row["stop"] else ""
    known = [row["id"], manifest.get("task", "-"), row["state"], promoted["policy"][:12], manifest.get("rate_hz", "-")]
    return [*known, row["sessions"], row["answered"], row["detail"] or stop]


@policies.command()
@NAME
@click.argument("policy")
@click.argument("report", default="")
@click.option("--uncompared", is_flag=True, help="Also where the report does not compare with what is in service.")
@remote
def promote(cloud: Cloud, as_json: bool, name: str, policy: str, report: str, uncompared: bool) -> None:
    """Serve POLICY under NAME. REPORT is that of the gate it passed; both are digests of artifacts, or folders. Without
    a REPORT, POLICY is a service that 'atoll serve' made."""
    body = {"policy": _place(policy), "report": _place(report) if report else "", "uncompared": uncompared}
    value = cloud.call("POST", f"/atoll/v1/policies/{name}/promote", body)
    if as_json:
        return show(value)
    click.echo(f"{name} is version {value['promoted']['policy'][:12]}, and listens at /atoll/v1/policies/{name}/act")


def _place(given: str) -> str:
    """A folder named relative to here is one of this machine's."""
    path = Path(given).expanduser()
    return str(path.absolute()) if path.is_dir() else given


@policies.command()
@NAME
@remote
def rollback(cloud: Cloud, as_json: bool, name: str) -> None:
    """Serve the version before. Sessions under way are ended safely."""
    value = cloud.call("POST", f"/atoll/v1/policies/{name}/rollback")
    show(value) if as_json else click.echo(f"{name} is version {value['promoted']['policy'][:12]} again")


@policies.command()
@NAME
@click.option("--reason", default="", help="What the others are told.")
@remote
def stop(cloud: Cloud, as_json: bool, name: str, reason: str) -> None:
    """Emergency stop: only safe actions, until the token that is printed releases it."""
    value = cloud.call("POST", f"/atoll/v1/policies/{name}/stop", {"reason": reason})
    if as_json:
        return show(value)
    click.echo(f"{name} is stopped.")
    if value["token"]:
        click.echo(f"Release it with: atoll policies reset {name} {value['token']}")


@policies.command()
@NAME
@click.argument("token")
@remote
def reset(cloud: Cloud, as_json: bool, name: str, token: str) -> None:
    """Release a stopped policy. Nothing moves before somebody agrees to it again."""
    value = cloud.call("POST", f"/atoll/v1/policies/{name}/reset", {"token": token})
    show(value) if as_json else click.echo(f"{name} is released.")


@policies.command()
@NAME
@click.option("--minutes", type=click.FloatRange(0, 1440, min_open=True), default=10.0, show_default=True)
@click.option("--withdraw", is_flag=True, help="No longer agree.")
@remote
def consent(cloud: Cloud, as_json: bool, name: str, minutes: float, withdraw: bool) -> None:
    """Agree that the simulated robot moves when this key calls the policy's tool. A stop ends it."""
    body = {"consent": not withdraw, "seconds": minutes * 60}
    value = cloud.call("POST", f"/atoll/v1/policies/{name}/consent", body)
    if as_json:
        return show(value)
    click.echo(f"{name} does not move for this key" if withdraw else f"{name} moves for this key for {minutes:g} min")


@policies.command()
@NAME
@click.argument("goal", nargs=-1)
@click.option("--consent", is_flag=True, help="You agree that the simulated robot moves, this once.")
@remote
def run(cloud: Cloud, as_json: bool, name: str, goal: tuple[str, ...], consent: bool) -> None:
    """Run one simulated episode. GOAL is what the tool asks for, as x=0.4 y=0.1 (see --json of a failed call)."""
    pairs = [part.partition("=") for part in goal]
    try:
        arguments = {key: float(value) for key, _, value in pairs}
    except ValueError:
        raise click.BadParameter(f"'{' '.join(goal)}' is not like x=0.4 y=0.1", param_hint="GOAL") from None
    if "seed" in arguments:
        arguments["seed"] = int(arguments["seed"])
    value = cloud.call("POST", f"/atoll/v1/policies/{name}/run", {"arguments": arguments, "consent": consent})
    if as_json:
        return show(value)
    outcome = "stopped" if value["stopped"] else "done" if value["success"] else "not done"
    click.echo(f"{name}: {outcome} after {value['seconds']:g} s, {value['steps']} steps")
    for what, values in (("at the end", value["final"]), ("limits met", value["limits"]), ("safe", value["safe"])):
        if values:
            click.echo(f"{what}: " + ", ".join(f"{key} {told}" for key, told in values.items()))


@policies.command()
@NAME
@click.argument("protocol", type=click.Choice(["groot", "lerobot"]))
@click.option("--host", default="127.0.0.1", show_default=True, help="IP address to listen on.")
@click.option("--port", type=int, default=0, help="Port to listen on (default: 5555 for groot, 8080 for lerobot).")
@click.option("--consent", is_flag=True, help="You agree that what connects here moves.")
@click.option("--simulated", is_flag=True, help="What connects here is a simulation, whose clock may stand still.")
@click.option("--lend-key", is_flag=True, help="Clients that bring no API key use this command's.")
@remote
def bridge(cloud: Cloud, as_json: bool, name: str, protocol: str, **how: Any) -> None:
    """Let clients of another PROTOCOL connect to the policy NAME, until Ctrl-C. Needs --url and a key.

    LeRobot's client has no place for an API key: give --lend-key, on a machine that only you use.
    """
    import asyncio

    from atoll.core.errors import SetupError
    from atoll.physical.serve.adapters.bridge import Cloud as Upstream
    from atoll.physical.serve.adapters.bridge import serve

    if not cloud.target.url:
        raise SetupError("give the address of the cloud: --url http://127.0.0.1:7700, and its key")
    base = cloud.target.url.rstrip("/").replace("http", "ws", 1)
    key = cloud.target.key if how["lend_key"] else ""
    upstream = Upstream(f"{base}/atoll/v1/policies/{name}/act", key, how["consent"], how["simulated"])
    asyncio.run(serve(upstream, protocol, how["host"], how["port"]))
