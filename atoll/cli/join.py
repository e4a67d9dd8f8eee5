"""`atoll region`: a region of a cloud, in a process or on a machine of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from atoll.cli.shared import DATA, errors, remote, show

if TYPE_CHECKING:
    from atoll.client import Cloud

MODELS = click.option("--models", help="Comma-separated ids of the models to start (default: all).")


@click.group()
def region() -> None:
    """A region of a cloud, in a process or on a machine of its own."""


@region.command()
@click.argument("region")
@remote
def invite(cloud: Cloud, as_json: bool, region: str) -> None:
    """A token with which another machine can become REGION, once, within an hour. It is shown once."""
    import sys
    from urllib.parse import quote

    value = cloud.call("POST", f"/atoll/v1/regions/{quote(region, safe='')}/invite")
    if as_json:
        return show(value)
    print(value["token"])
    print(f"On the machine: atoll region join GATEWAY-URL --token {value['token'][:12]}...", file=sys.stderr)


@region.command()
@click.argument("region")
@remote
def remove(cloud: Cloud, as_json: bool, region: str) -> None:
    """Forget the machine that joined as REGION. The region is closed; 'atoll regions open' has gateways serve it."""
    from urllib.parse import quote

    value = cloud.call("DELETE", f"/atoll/v1/regions/{quote(region, safe='')}/join")
    if as_json:
        return show(value)
    print(f"{value['region']} is {value['status']}")


@region.command()
@click.argument("gateway")
@click.option("--token", required=True, help="From 'atoll region invite' ('-' reads it from standard input).")
@click.option("--region", "wanted", help="The region to become; the token names it too.")
@click.option("--listen", default="0.0.0.0:7701", show_default=True, help="HOST:PORT; port 0 is a free one.")
@MODELS
@DATA
def join(gateway: str, token: str, wanted: str | None, listen: str, models: str | None, data: str | None) -> None:
    """Become a region of the cloud at the URL GATEWAY and serve it. 'atoll region serve' goes on after a restart."""
    from atoll import app
    from atoll.core.errors import InvalidRequest
    from atoll.regions.join import Token
    from atoll.settings import load

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise click.UsageError(f"--listen must be HOST:PORT, not '{listen}'")
    with errors(False):
        token = click.get_text_stream("stdin").readline() if token == "-" else token
        named = Token.parse(token).region
        if wanted not in {None, named}:
            raise InvalidRequest(f"the token is for region '{named}', not '{wanted}'", param="region")
        app.join_region(load(data=data), gateway, token, (host.strip("[]"), int(port)))
    _serve(models, data)


@region.command()
@MODELS
@DATA
def serve(models: str | None, data: str | None) -> None:
    """Serve the region that joined a cloud from this data folder."""
    _serve(models, data)


def _serve(models: str | None, data: str | None) -> None:
    import json

    from atoll import app, terminal
    from atoll.settings import load

    def announce(url: str) -> None:
        print(json.dumps({"url": url}), flush=True)

    with errors(True):
        settings = load(models=models, data=data)
        terminal.configure_logging(settings.log_level)
        if settings.region_token:
            app.run_region(settings, announce)
        else:
            app.run_joined(settings, lambda *_: None, announce)
