"""What all commands share: options, errors as one line, and the way to a running cloud."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from atoll.client import Cloud

FILE = click.Path(dir_okay=False, path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
DATA = click.option("--data", type=click.Path(file_okay=False), help="Folder for state.")
INTERRUPTED = 130


@contextmanager
def errors(as_json: bool) -> Iterator[None]:
    """Errors as one line and exit code 1, Ctrl-C as 130."""
    from atoll.core.errors import AtollError

    try:
        yield
    except AtollError as error:
        from atoll import terminal

        terminal.complain(error, as_json)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def remote(function: Callable[..., None]) -> Callable[..., None]:
    """A command that talks to a running cloud: `function(cloud, as_json, **options)`."""

    @click.option("--url", help="Address of a cloud elsewhere (or ATOLL_URL).")
    @click.option("--key", help="API key for --url (or ATOLL_API_KEY, which other users cannot see).")
    @DATA
    @JSON
    @functools.wraps(function)
    def run(url: str | None, key: str | None, data: str | None, as_json: bool, **options: Any) -> None:
        with errors(as_json), open_cloud(url, key, data) as cloud:
            function(cloud, as_json, **options)

    return run


def open_cloud(url: str | None, key: str | None, data: str | None) -> Cloud:
    from atoll.client import Cloud, Target
    from atoll.settings import load

    settings = load(url=url, api_key=key, data=data)
    return Cloud(Target(settings.operator_socket, settings.url, settings.api_key))


def show(value: Any) -> None:
    import json

    print(json.dumps(value, ensure_ascii=False))
