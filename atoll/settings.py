"""Settings: `atoll.toml` in the data folder, then `ATOLL_*` variables, read once into one frozen value.

Every field below is a key of the file and, in capitals after `ATOLL_`, an environment variable.
Unknown keys and bad values are errors that name them. Nothing else in Atoll reads the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from atoll.core.errors import SetupError


@dataclass(frozen=True, slots=True)
class Settings:
    """`data` holds state, `weights` the shared model files; `store` is the URL of the database, `jobs` of that of long
    work (SQLite in `data` if empty).

    `threads` 0 means one per core. `context` is tokens per conversation, `slots` how many run at once, of the
    embedded model. `models` lists the models to start (all if empty). `hub_url` is where repositories of models are.
    `region` is where this gateway and its database stand. `regions` are served (empty: all that the `catalogue` file,
    or Atoll's own, calls live); those in `isolate` have a process of their own, which runs `isolated_models` (empty:
    the text models); `wan` emulates the latency to them. `objective` is what routing minimises: fastest, balanced,
    cheapest or greenest; its decisions are kept in `route_log`, for 'atoll route replay'. With `hedge`, a second region
    is asked when the first token takes three times as long as expected.
    Spans go to `otlp_endpoint`; those of requests that may be stored in some regions only, if `otlp_region` is one.
    `url` and `api_key` point the command line to a cloud elsewhere; empty means the one in `data`.
    """

    data: Path
    weights: Path
    host: str = "127.0.0.1"
    port: int = 7700
    region: str = "eu-central-1"
    regions: tuple[str, ...] = ()
    isolate: tuple[str, ...] = ()
    isolated_models: tuple[str, ...] = ()
    wan: bool = False
    catalogue: str = ""
    objective: str = "balanced"
    hedge: bool = False
    route_log: str = ""
    store: str = ""
    jobs: str = ""
    models: tuple[str, ...] = ()
    threads: int = 0
    slots: int = 4
    context: int = 0
    max_body_bytes: int = 32 * 1024 * 1024
    drain_seconds: float = 20.0
    log_level: str = "info"
    otlp_endpoint: str = ""
    otlp_region: str = ""
    hub_url: str = "https://huggingface.co"
    url: str = ""
    api_key: str = field(default="", repr=False)
    region_token: str = field(default="", repr=False)

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{(self.data / 'atoll.db').absolute()}"

    @property
    def operator_socket(self) -> Path:
        return self.data / "atoll.sock"


RULES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "threads": (0, 1024),
    "slots": (1, 256),
    "context": (0, 10_000_000),
    "max_body_bytes": (1024, 2**31),
    "drain_seconds": (0, 3600),
}


def load(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Defaults, then the file, then the environment, then `overrides` (command-line options). Raises SetupError."""
    env = os.environ if environment is None else environment
    home = Path(env.get("HOME") or Path.home())
    data = Path(overrides.get("data") or env.get("ATOLL_DATA") or _xdg(env, "XDG_DATA_HOME", home / ".local/share"))
    settings = Settings(data=data, weights=_xdg(env, "XDG_CACHE_HOME", home / ".cache") / "weights")
    settings = _apply(settings, _read(data / "atoll.toml"), str(data / "atoll.toml"))
    known = {f"ATOLL_{f.name.upper()}": f.name for f in fields(Settings)}
    given = {known[name]: value for name, value in env.items() if name in known}
    settings = _apply(settings, given, "environment")
    if not settings.otlp_endpoint and env.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        settings = replace(settings, otlp_endpoint=env["OTEL_EXPORTER_OTLP_ENDPOINT"])
    return _apply(settings, {k: v for k, v in overrides.items() if v is not None}, "command line")


def _xdg(env: Mapping[str, str], name: str, default: Path) -> Path:
    return Path(env.get(name) or default) / "atoll"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"cannot read {path}: {error}") from None


def _apply(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    types = {f.name: str(f.type) for f in fields(Settings)}
    changes = {}
    for name, value in values.items():
        if name not in types:
            raise SetupError(f"{source}: unknown setting '{name}'; known: {', '.join(sorted(types))}")
        changes[name] = _convert(name, types[name], value, source)
    return replace(settings, **changes)


def _convert(name: str, kind: str, value: Any, source: str) -> Any:
    try:
        converted = _CONVERTERS[kind](value)
    except (ValueError, TypeError, KeyError):
        raise SetupError(f"{source}: '{name}' must be {kind}, not {value!r}") from None
    low, high = RULES.get(name, (converted, converted)) if kind in {"int", "float"} else (0, 0)
    if kind in {"int", "float"} and not low <= converted <= high:
        raise SetupError(f"{source}: '{name}' must be between {low} and {high}, not {converted}")
    if name == "log_level" and converted not in {"debug", "info", "warning", "error"}:
        raise SetupError(f"{source}: 'log_level' must be debug, info, warning or error, not {converted!r}")
    return converted


def _names(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    return tuple(str(item).strip() for item in items if str(item).strip())


def _switch(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    return value if isinstance(value, bool) else words[str(value).lower()]


_CONVERTERS = {
    "bool": _switch,
    "Path": lambda v: Path(v).expanduser(),
    "str": str,
    "int": int,
    "float": float,
    "tuple[str, ...]": _names,
}
