"""The command line: parse, call one function, print."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atoll import __version__
from atoll.cli.join import region
from atoll.cli.physical import COMMANDS as PHYSICAL_COMMANDS
from atoll.cli.policies import policies
from atoll.cli.regions import COMMANDS as REGION_COMMANDS
from atoll.cli.shared import DATA, FILE, JSON, errors, open_cloud, remote, show

if TYPE_CHECKING:
    from atoll.client import Cloud

@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Atoll: an AI cloud that anyone can run."""


@main.command()
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=int, help="Port to listen on (default 7700; 0 takes a free one).")
@DATA
@click.option("--store", help="Database URL: sqlite:////path or postgresql://...")
@click.option("--models", help="Comma-separated ids of the models to start (default: all).")
@click.option("--regions", help="Comma-separated ids of the regions to serve (default: all that are live).")
@click.option("--isolate", help="Regions that get a process of their own, so that a kill is a kill.")
@click.option("--wan/--no-wan", default=None, help="Emulate the latency between the regions.")
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


@main.command()
@click.option("--timeout", type=click.IntRange(1), default=120, show_default=True, help="Seconds to wait.")
@DATA
@JSON
def down(timeout: int, data: str | None, as_json: bool) -> None:
    """Stop the cloud that runs here: requests under way are finished."""
    from atoll.client import end_process

    with errors(as_json), open_cloud("", "", data) as cloud:
        pid = cloud.call("GET", "/atoll/v1/status")["pid"]
        end_process(pid, timeout)
        show({"stopped": pid}) if as_json else print(f"Atoll (process {pid}) has stopped.")


@main.command()
@remote
def status(cloud: Cloud, as_json: bool) -> None:
    """What runs, since when, and the state of each model."""
    from atoll import terminal

    value = cloud.call("GET", "/atoll/v1/status")
    if as_json:
        return show(value)
    minutes = int(value["uptime_s"] // 60)
    print(f"Atoll {value['version']}, process {value['pid']}, up {minutes // 60} h {minutes % 60} min,", end=" ")
    print(f"state in {value['store']}, {value['running']} requests under way\n")
    terminal.table(("MODEL", "TASK", "STATE", "DETAIL"), [_picked(m, "id task state detail") for m in value["models"]])


@main.command()
@click.argument("question", required=False)
@click.option("--model", "-m", default="max", show_default=True)
@click.option("--image", "-i", "images", type=FILE, multiple=True, help="A picture to go with the question.")
@click.option("--audio", "-a", "sounds", type=FILE, multiple=True, help="A recording to go with the question.")
@click.option("--system", "-s", help="Instructions for the model.")
@click.option("--temperature", type=float)
@click.option("--max-tokens", type=int)
@click.option("--think/--no-think", default=None, help="For models that can think before they answer.")
@remote
def chat(cloud: Cloud, as_json: bool, question: str | None, **options: Any) -> None:
    """Ask one QUESTION (standard input is added to it), or without one begin a conversation."""
    from atoll.client import Answer
    from atoll.repl import Repl, message, stream

    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(part.strip() for part in (question or "", piped) if part.strip())
    attached = (options["images"], options["sounds"])
    base = {name: options[name] for name in ("model", "temperature", "max_tokens") if options[name] is not None}
    if options["think"] is not None:
        base["reasoning_effort"] = "medium" if options["think"] else "none"
    history = [{"role": "system", "content": options["system"]}] if options["system"] else []
    if not text and not any(attached):
        if as_json or not sys.stdin.isatty():
            raise click.UsageError("there is no question: give it as an argument or on standard input")
        return Repl(cloud, base, Answer, history).run()
    answer = Answer()
    chunks = cloud.chat({**base, "messages": [*history, message(text, *attached)]})
    if not as_json:
        return stream(chunks, answer)
    for chunk in chunks:
        answer.take(chunk)
    show(answer.facts())


@main.group()
def models() -> None:
    """The models of this cloud, and those it could have."""


@models.command("list")
@remote
def list_models(cloud: Cloud, as_json: bool) -> None:
    """Models and service tiers that can be asked."""
    from atoll import terminal

    value = cloud.call("GET", "/v1/models")
    if as_json:
        return show(value)
    rows = [[*_picked(m, "id task state context licence"), m["note"] or m["title"]] for m in value["data"]]
    tiers = {m["id"]: m["root"] for m in value["data"] if m["tier"]}
    for row in rows:
        row[0] += f" -> {tiers[row[0]]}" if row[0] in tiers else ""
    terminal.table(("MODEL", "TASK", "STATE", "CONTEXT", "LICENCE", "NOTE"), rows)


@models.command("show")
@click.argument("model")
@remote
def show_model(cloud: Cloud, as_json: bool, model: str) -> None:
    """Everything on the card of MODEL."""
    from atoll import terminal

    value = cloud.call("GET", f"/v1/models/{_part(model)}")
    if as_json:
        return show(value)
    terminal.table(("FIELD", "VALUE"), [(k, ", ".join(v) if isinstance(v, list) else v) for k, v in value.items()])


@models.command()
@remote
def catalogue(cloud: Cloud, as_json: bool) -> None:
    """Models known by a short name: `atoll models add NAME` installs one."""
    from atoll import terminal

    value = cloud.call("GET", "/atoll/v1/catalogue")
    if as_json:
        return show(value)
    rows = [
        (m["id"], *(terminal.size(m[f"{n}_bytes"]) for n in ("download", "memory")), *_picked(m, "fits licence note"))
        for m in value["data"]
    ]
    terminal.table(("NAME", "DOWNLOAD", "MEMORY", "FITS", "LICENCE", "NOTE"), rows)


@models.command()
@click.argument("source")
@click.option("--id", help="The name it gets here.")
@click.option("--model", help="The model's name on its server, if it has several.")
@click.option("--key-env", help="Environment variable, where Atoll runs, that holds the server's key.")
@click.option("--context", type=int, help="Tokens of context.")
@remote
def add(cloud: Cloud, as_json: bool, source: str, **options: Any) -> None:
    """Install a model and start it.

    SOURCE is a short name (see `atoll models catalogue`), hf:owner/repo[:file], a .gguf file, or the address of an
    OpenAI-compatible server such as https://host/v1.
    """
    from atoll import terminal

    if not cloud.target.url and "://" not in source and source.endswith(".gguf") and not source.startswith("hf:"):
        source = str(Path(source).expanduser().absolute())
    body = {"source": source, **{name: value for name, value in options.items() if value is not None}}
    added: dict[str, Any] = {}
    with terminal.Startup(as_json) as view:
        for name, data in cloud.events("/atoll/v1/models", body):
            if name == "progress":
                view.progress(terminal.printable(data["label"]), data["done"], data["total"])
            elif name == "done":
                added = data["model"]
    if as_json:
        return show({"model": added})
    print(f"{added['id']} is ready: {added['title']}, context {added['context']}, licence {added['licence'] or '-'}")
    print(f"Try it: atoll chat -m {added['id']} 'Hello'    behind a tier: atoll models use max {added['id']}")


@models.command()
@click.argument("model")
@remote
def remove(cloud: Cloud, as_json: bool, model: str) -> None:
    """Take MODEL out; its weights stay in the cache."""
    value = cloud.call("DELETE", f"/atoll/v1/models/{_part(model)}")
    show(value) if as_json else print(f"{model} is removed.")


@models.command()
@click.argument("tier", type=click.Choice(["max", "omni"]))
@click.argument("model")
@remote
def use(cloud: Cloud, as_json: bool, tier: str, model: str) -> None:
    """Put MODEL behind the service TIER, max or omni."""
    value = cloud.call("PUT", f"/atoll/v1/tiers/{tier}", {"model": model})
    show(value) if as_json else print(f"'{tier}' now means {model}.")


@main.group()
def keys() -> None:
    """API keys: who may ask, and how much."""


def limits(function: Callable[..., None]) -> Callable[..., None]:
    none = " ('none': no limit)"
    for option in (
        click.option("--budget", help="US dollars a month" + none),
        click.option("--tokens-per-minute", help="Tokens a minute" + none),
        click.option("--requests-per-minute", help="Requests a minute" + none),
    ):
        function = option(function)
    return function


def _limits(requests_per_minute: str | None, tokens_per_minute: str | None, budget: str | None) -> dict[str, Any]:
    """Only what was given; None lifts a limit."""
    given = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    table: dict[str, Any] = {name: _amount(name, text, int) for name, text in given.items() if text is not None}
    if budget is not None:
        table["budget_per_month"] = _amount("budget", budget, float)
    return table


def _amount(name: str, text: str, kind: type) -> Any:
    try:
        return None if text == "none" else kind(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is neither a number nor 'none'", param_hint=f"--{name}") from None


def policy(function: Callable[..., None]) -> Callable[..., None]:
    """Options for what a key's rule is."""
    options = (
        click.option("--process-in", help="Zones, countries or regions that may process its requests; none lifts."),
        click.option("--store-in", help="Where what is kept of them may be stored."),
        click.option("--on-unavailable", type=click.Choice(["reject", "queue"]), help="Where no such region serves."),
        click.option("--recovery", type=click.Choice(["exact", "fast", "hot", "none"]), help="When a stream breaks."),
        click.option("--on-mismatch", type=click.Choice(["fail", "continue", "restart"]), help="Other weights left."),
        click.option("--priority", type=click.IntRange(0, 9), help="Higher goes first; 5 if not given."),
    )
    return functools.reduce(lambda f, option: option(f), reversed(options), function)


def _policy(
    process_in: str | None, store_in: str | None, on_unavailable: str | None, **plain: Any
) -> dict[str, Any]:
    places = {axis: text for axis, text in (("process_in", process_in), ("store_in", store_in)) if text is not None}
    rule: dict[str, Any] = {
        axis: [] if text == "none" else [p.strip() for p in text.split(",")] for axis, text in places.items()
    }
    if on_unavailable is not None:
        rule["on_unavailable"] = on_unavailable
    given = {name: value for name, value in plain.items() if value is not None}
    return {**given, **({"residency": rule} if rule else {})}


@keys.command("list")
@click.option("--all", "everyone", is_flag=True, help="Revoked and expired keys too.")
@remote
def list_keys(cloud: Cloud, as_json: bool, everyone: bool) -> None:
    """Keys, their limits and what they spent this month."""
    import time

    from atoll import terminal

    value = cloud.call("GET", "/atoll/v1/keys")
    now = time.time()
    if not everyone:
        value["data"] = [k for k in value["data"] if not k["revoked_at"] and (k["expires_at"] or now + 1) > now]
    if as_json:
        return show(value)
    rows = [
        [*_picked(k, "id name role hint"), *k["limits"].values(), k["spent_this_month"], bool(k["revoked_at"])]
        for k in value["data"]
    ]
    terminal.table(("ID", "NAME", "ROLE", "KEY", "REQ/MIN", "TOK/MIN", "$/MONTH", "SPENT", "REVOKED"), rows)


@keys.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "admin"]), default="user", show_default=True)
@click.option("--days", type=click.FloatRange(0, min_open=True), help="Days until it expires.")
@limits
@policy
@remote
def create(cloud: Cloud, as_json: bool, name: str, role: str, days: float | None, **given: Any) -> None:
    """A new key called NAME. It is shown once."""
    bounds = {option: given.pop(option) for option in ("requests_per_minute", "tokens_per_minute", "budget")}
    body: dict[str, Any] = {"name": name, "role": role, "limits": _limits(**bounds), **_policy(**given)}
    if days is not None:
        body["expires_in_s"] = days * 86400
    value = cloud.call("POST", "/atoll/v1/keys", body)
    if as_json:
        return show(value)
    print(value["secret"])
    print(f"{value['id']} ({name}): keep the key, it is not shown again.", file=sys.stderr)


@keys.command("limit")
@click.argument("key_id")
@limits
@remote
def limit_key(cloud: Cloud, as_json: bool, key_id: str, **given: str | None) -> None:
    """Change the limits of KEY_ID; those not named stay."""
    body = _limits(**given)
    if not body:
        raise click.UsageError("name a limit: --requests-per-minute, --tokens-per-minute or --budget")
    value = cloud.call("PATCH", f"/atoll/v1/keys/{_part(key_id)}", {"limits": body})
    show(value) if as_json else print(", ".join(f"{k}: {v}" for k, v in value["limits"].items()))


@keys.command("policy")
@click.argument("key_id")
@policy
@remote
def change_policy(cloud: Cloud, as_json: bool, key_id: str, **given: Any) -> None:
    """Change where requests of KEY_ID may go, and how they recover; what is not named stays."""
    body = _policy(**given)
    if not body:
        raise click.UsageError("name a rule, such as --process-in, --recovery or --priority; see --help")
    value = cloud.call("PATCH", f"/atoll/v1/keys/{_part(key_id)}", body)
    told = ("residency", "recovery", "on_mismatch", "priority")
    show(value) if as_json else print(", ".join(f"{k}: {value[k]}" for k in told))


@keys.command()
@click.argument("key_id")
@remote
def revoke(cloud: Cloud, as_json: bool, key_id: str) -> None:
    """Refuse KEY_ID from now on."""
    value = cloud.call("DELETE", f"/atoll/v1/keys/{_part(key_id)}")
    show(value) if as_json else print(f"{key_id} ({value['name']}) is revoked.")


@main.command()
@click.option("--days", type=click.IntRange(1, 366), default=7, show_default=True, help="Today and the days before.")
@click.option("--key-id", help="Only this key.")
@remote
def usage(cloud: Cloud, as_json: bool, days: int, key_id: str | None) -> None:
    """Requests, units and cost by day (UTC), key and model, with sums."""
    import time

    from atoll import terminal

    today = time.time() // 86400 * 86400
    asked = {"since": today - (days - 1) * 86400, "until": today + 86400, "step": 86400, "key_id": key_id}
    rows = cloud.call("GET", "/atoll/v1/usage", **asked)["data"]
    for row in rows:
        row["day"] = time.strftime("%Y-%m-%d", time.gmtime(row["start"]))
    sums = {f"by_{name}": terminal.sums(rows, name) for name in ("day", "key_id", "model")}
    if as_json:
        return show({"rows": rows, "total": terminal.sums(rows, None), **sums})
    terminal.usage(rows, sums)


@main.command()
@click.option("--network", is_flag=True, help="Also look whether the package index and the model hub answer.")
@click.option("--quick", is_flag=True, help="Do not read all weights to compare their digests.")
@DATA
@JSON
def doctor(network: bool, quick: bool, data: str | None, as_json: bool) -> None:
    """What is present, what is missing, and what to do about it. Exit code 1 when something needed is broken."""
    with errors(as_json):
        findings = _diagnose(data, not quick, network)
        broken = [f for f in findings if f["state"] == "broken"]
        if as_json:
            show({"ok": not broken, "findings": findings})
        for f in () if as_json else findings:
            print(f"{f['state']:<8}{f['name']}: {f['detail']}" + (f"\n        -> {f['advice']}" if f["advice"] else ""))
        sys.exit(1 if broken else 0)


def _diagnose(data: str | None, deep: bool, network: bool) -> list[dict[str, Any]]:
    import asyncio
    from dataclasses import asdict

    from atoll.core.errors import AtollError
    from atoll.settings import load

    settings = load(data=data)
    try:
        with open_cloud("", "", data) as cloud:
            pid = cloud.call("GET", "/atoll/v1/status")["pid"]
    except AtollError:
        pid = None
    try:
        from atoll import app
    except ImportError as error:
        return [{"name": "packages", "state": "broken", "detail": str(error), "advice": "Install Atoll again."}]
    return [asdict(finding) for finding in asyncio.run(app.diagnose(settings, pid, deep, network))]


@main.command()
@click.option("--model", "-m", default="max", show_default=True)
@click.option("--tokens", type=click.IntRange(8, 4096), default=64, show_default=True, help="Most tokens an answer.")
@click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Answers for each client.")
@remote
def bench(cloud: Cloud, as_json: bool, model: str, tokens: int, rounds: int) -> None:
    """A quick look at speed: time to first token and tokens a second, with 1 and 4 clients."""
    import asyncio

    from atoll import terminal
    from atoll.client import measure

    plan = [(1, 1), (1, rounds), (4, rounds)]
    _, *results = [asyncio.run(measure(cloud.target, model, clients, tokens, each)) for clients, each in plan]
    if as_json:
        return show({"model": model, "results": results})
    columns = ("CLIENTS", "ANSWERS", "TOKENS", "SECONDS", "TTFT ms p50", "TTFT ms max", "TOKENS/S")
    terminal.table(columns, [list(r.values()) for r in results])


def _picked(table: dict[str, Any], names: str) -> list[Any]:
    return [table[name] for name in names.split()]


def _part(text: str) -> str:
    """One part of an address."""
    from urllib.parse import quote

    return quote(text, safe="")


for command in (*REGION_COMMANDS, region, *PHYSICAL_COMMANDS, policies):
    main.add_command(command)
