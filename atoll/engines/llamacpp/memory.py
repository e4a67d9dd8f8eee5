"""How much memory a model needs, and how much there is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from atoll.core.errors import SetupError

MIB = 1 << 20
KV_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
RUNTIME_MIB = 160
SLOT_CHOICES = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes. The KV cache holds `context` tokens for each of `slots` requests at once."""

    weights: int
    kv_cache: int
    overhead: int
    context: int
    slots: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.overhead

    def __str__(self) -> str:
        return (
            f"{_mib(self.weights)} weights + {_mib(self.kv_cache)} KV cache "
            f"({self.slots} x {self.context} tokens x {self.kv_cache // (self.slots * self.context)} bytes) "
            f"+ {_mib(self.overhead)} working memory = {_mib(self.total)}"
        )


def need(
    weights: int, kv_values: int, context: int, slots: int, *, kv_type: str = "f16", prompt_cache_mib: int = 64
) -> Need:
    """`weights` is the file size; `kv_values` the K and V values kept per token over all layers.

    Working memory is the prompt cache and `RUNTIME_MIB` for the process, its graph and the logits of a batch of 128.
    """
    kv = int(kv_values * KV_BYTES[kv_type]) * context * slots
    return Need(weights, kv, (prompt_cache_mib + RUNTIME_MIB) * MIB, context, slots)


def fit(model: str, wanted: list[Need], available: int | None) -> Need:
    """The first of `wanted` that fits (they go from most to least); raises SetupError with the arithmetic of the last.

    `available` None means that this system does not tell: the first is taken.
    """
    for option in wanted:
        if available is None or option.total <= available:
            return option
    raise SetupError(
        f"'{model}' does not fit in memory: it needs {wanted[-1]}, and {_mib(available or 0)} are available. "
        "Stop other programs, take a smaller model, or lower 'context' in its card."
    )


def available(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be had without swapping.

    Linux: MemAvailable, and no more than the control group (container) leaves. Other systems: three quarters of
    the physical memory where sysconf tells it (macOS, BSD); None where nothing tells.
    """
    lines = _read(proc / "meminfo").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" in fields:
        free = int(fields["MemAvailable"].split()[0]) * 1024
        return min([free, *_group(cgroup)])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4
    except (ValueError, OSError, AttributeError):
        return None


def _group(cgroup: Path) -> list[int]:
    """What a control group, version 2, leaves; its page cache can be given up."""
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if not (limit.isdigit() and used.isdigit()):
        return []
    stat = dict(line.split() for line in _read(cgroup / "memory.stat").splitlines() if len(line.split()) == 2)
    return [max(0, int(limit) - int(used) + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"
