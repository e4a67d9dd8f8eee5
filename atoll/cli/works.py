"""Where runs are done: in the cloud that runs here or elsewhere, or where there is none by a worker of this command."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import click

from atoll.cli.shared import DATA, JSON, errors

if TYPE_CHECKING:
    from atoll.client import Cloud
    from atoll.jobs.desk import Desk

FOLLOW_S = 0.25
CONNECT_S = 5.0

Event = tuple[str, Any]


class Works(Protocol):
    """Rows as the API shows them. `local`: the worker ends with this command."""

    local: bool

    def stages(self) -> Mapping[str, Any]: ...

    def submit(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]: ...

    def runs(self, id: str | None = None) -> Any: ...

    def change(self, id: str, action: str) -> Mapping[str, Any]: ...

    def follow(self, id: str) -> Iterator[Event]: ...

    def artifacts(self, digest: str | None = None) -> Any: ...


class There:
    """A running cloud."""

    local = False

    def __init__(self, cloud: Cloud):
        self.cloud = cloud

    def stages(self) -> Mapping[str, Any]:
        return self.cloud.call("GET", "/atoll/v1/stages")

    def submit(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.cloud.call("POST", "/atoll/v1/runs", wanted)

    def runs(self, id: str | None = None) -> Any:
        return self.cloud.call("GET", f"/atoll/v1/runs/{quote(id, safe='')}" if id else "/atoll/v1/runs")

    def change(self, id: str, action: str) -> Mapping[str, Any]:
        return self.cloud.call("POST", f"/atoll/v1/runs/{quote(id, safe='')}/{action}")

    def follow(self, id: str) -> Iterator[Event]:
        return self.cloud.events(f"/atoll/v1/runs/{quote(id, safe='')}/events")

    def artifacts(self, digest: str | None = None) -> Any:
        if digest:
            return self.cloud.call("GET", f"/atoll/v1/artifacts/{quote(digest, safe='')}")
        return self.cloud.call("GET", "/atoll/v1/artifacts", limit=1000)


class Here:
    """The data folder, without a cloud."""

    local = True

    def __init__(self, desk: Desk, recipes: Mapping[str, Any]):
        self.desk, self.recipes = desk, recipes

    def stages(self) -> Mapping[str, Any]:
        from dataclasses import asdict

        return {"data": self.desk.stages(), "recipes": [asdict(recipe) for recipe in self.recipes.values()]}

    def submit(self, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
        from atoll.core.runs import order_of

        return self.desk.submit(order_of(wanted, self.recipes))

    def runs(self, id: str | None = None) -> Any:
        return self.desk.row(id) if id else {"data": self.desk.rows()}

    def change(self, id: str, action: str) -> Mapping[str, Any]:
        return self.desk.cancel(id) if action == "cancel" else self.desk.resume(id)

    def follow(self, id: str) -> Iterator[Event]:
        from atoll.jobs.desk import Cursor

        cursor = Cursor()
        while not cursor.ended:
            self.desk.tend()
            told, cursor = self.desk.news(id, cursor)
            yield from told
            if not cursor.ended:
                time.sleep(FOLLOW_S)

    def artifacts(self, digest: str | None = None) -> Any:
        return self.desk.artifact(digest) if digest else {"data": self.desk.shelf.rows()}


@contextmanager
def open_works(url: str | None, key: str | None, data: str | None) -> Iterator[Works]:
    """The cloud at `url`, or that which runs in this data folder, or the folder without one."""
    from atoll.client import Cloud, Target
    from atoll.settings import load

    settings = load(url=url, api_key=key, data=data)
    if settings.url or _answers(settings.operator_socket):
        with Cloud(Target(settings.operator_socket, settings.url, settings.api_key)) as cloud:
            yield There(cloud)
        return
    from atoll import app

    desk = app.open_desk(settings)
    try:
        yield Here(desk, app.RECIPES)
    finally:
        desk.close()


def _answers(path: Path) -> bool:
    """Whether a process listens at this socket."""
    import socket

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_S)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def working(function: Callable[..., None]) -> Callable[..., None]:
    """A command that works with or without a cloud: `function(works, as_json, **options)`."""

    @click.option("--url", help="Address of a cloud elsewhere (or ATOLL_URL).")
    @click.option("--key", help="API key for --url (or ATOLL_API_KEY, which other users cannot see).")
    @DATA
    @JSON
    @functools.wraps(function)
    def run(url: str | None, key: str | None, data: str | None, as_json: bool, **options: Any) -> None:
        with errors(as_json), open_works(url, key, data) as works:
            function(works, as_json, **options)

    return run
