"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys

import click

from atoll import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Atoll: an AI cloud that anyone can run."""


@main.command()
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=int, help="Port to listen on (default 7700; 0 takes a free one).")
@click.option("--data", type=click.Path(file_okay=False), help="Folder for state.")
@click.option("--store", help="Database URL: sqlite:////path or postgresql://...")
@click.option("--models", help="Comma-separated ids of the models to start (default: all).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when ready.")
def up(as_json: bool, **overrides: object) -> None:
    """Start the cloud and stay in the foreground until Ctrl-C."""
    from atoll import app, terminal
    from atoll.core.errors import AtollError
    from atoll.settings import load

    view = terminal.Startup(as_json)
    try:
        settings = load(**overrides)
        terminal.configure_logging(settings.log_level)
        with view:
            app.run(settings, view.progress, view.announce)
    except AtollError as error:
        view.fail(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
