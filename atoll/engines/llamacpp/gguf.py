"""The header of a GGUF file, read with bounds: a weight file may come from anyone.

Layout (ggml/docs/gguf.md): magic "GGUF", version u32, tensor count u64, pair count u64; pairs of key string,
type u32 and value; then tensor infos: name, dimensions u32, sizes u64 each, type u32, offset u64.
All little-endian; a string is a u64 length and that many bytes.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from atoll.core.cards import Architecture
from atoll.core.errors import SetupError

MAX_PAIRS = 4096
MAX_TENSORS = 100_000
MAX_READ = 32 << 20
MAX_ITEMS = 4 << 20
MAX_HEADER = 256 << 20
KEEP_ITEMS = 1024

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True, slots=True)
class Header:
    """What Atoll needs to know. `kv_values` is the number of K and V values kept per token, over all layers."""

    architecture: str
    layers: int
    context: int
    vocabulary: int
    kv_values: int
    tensors: int
    chat_template: str
    pairs: dict[str, Any]


def kv_values(architecture: Architecture) -> int:
    """The same number from a card, for a file that is not here yet."""
    return architecture.layers * architecture.kv_heads * architecture.head_dim * 2


def parts(first: Path) -> list[Path]:
    """All files of a model: one, or every part when `first` is named ...-00001-of-0000N.gguf."""
    match = PART.search(first.name)
    if not match:
        return [first]
    stem, total = first.name[: match.start()], int(match[2])
    return [first.with_name(f"{stem}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1)]


def size(first: Path) -> int:
    """Bytes of all parts. Raises SetupError when one is missing."""
    missing = [p for p in parts(first) if not p.is_file()]
    if missing:
        raise SetupError(f"Weights are missing: {missing[0]} is not there; add the model again to fetch it.")
    return sum(p.stat().st_size for p in parts(first))


def read_header(path: Path) -> Header:
    """Raises SetupError when the file is missing, not GGUF, damaged or cut short."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path).header()
    except OSError as error:
        raise SetupError(f"Weights cannot be read: {path}: {error.strerror}.") from error
    except (UnicodeDecodeError, struct.error) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> SetupError:
    return SetupError(f"Weights are damaged: {path} {why}. Delete the file and add the model again to fetch it anew.")


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.length = path.stat().st_size
        self.left = min(self.length, MAX_HEADER)

    def header(self) -> Header:
        if self.take(4) != b"GGUF":
            raise _damaged(self.path, "is not a GGUF file")
        version, tensors, count = self.number("I"), self.number("Q"), self.number("Q")
        if version not in {2, 3}:
            raise _damaged(self.path, f"has GGUF version {version}; 2 and 3 are known")
        if tensors > MAX_TENSORS or count > MAX_PAIRS:
            raise _damaged(self.path, f"claims {tensors} tensors and {count} settings")
        pairs = {}
        for _ in range(count):
            key = self.string()
            pairs[key] = self.value(self.number("I"))
        self.check_tensors(tensors, int(pairs.get("general.alignment", 32)))
        return self.summary(pairs, tensors)

    def summary(self, pairs: dict[str, Any], tensors: int) -> Header:
        name = str(pairs.get("general.architecture", ""))

        def number(key: str, default: int | None = None) -> int:
            value = pairs.get(f"{name}.{key}", default)
            if not isinstance(value, int) or not 0 <= value < 1 << 32:
                raise _damaged(self.path, f"has no usable '{name}.{key}'")
            return value

        layers, width = number("block_count"), number("embedding_length")
        heads = self.per_layer(pairs, f"{name}.attention.head_count", layers)
        kv_heads = self.per_layer(pairs, f"{name}.attention.head_count_kv", layers) or heads
        head = width // max([1, *heads])
        values = sum(kv_heads) * (number("attention.key_length", head) + number("attention.value_length", head))
        vocabulary = pairs.get("tokenizer.ggml.tokens")
        return Header(
            architecture=name,
            layers=layers,
            context=number("context_length", 0),
            vocabulary=vocabulary[0] if isinstance(vocabulary, tuple) else 0,
            kv_values=values,
            tensors=tensors,
            chat_template=str(pairs.get("tokenizer.chat_template", "")),
            pairs=pairs,
        )

    def per_layer(self, pairs: dict[str, Any], key: str, layers: int) -> list[int]:
        """A setting that is one number for all layers or a list with one for each."""
        value = pairs.get(key)
        if isinstance(value, int):
            return [value] * min(layers, MAX_PAIRS)
        if isinstance(value, tuple):
            return [n for n in value[1] if isinstance(n, int)]
        return []

    def check_tensors(self, count: int, alignment: int) -> None:
        """The data of every tensor must start inside the file."""
        last = 0
        for _ in range(count):
            self.string()
            dimensions = self.number("I")
            if dimensions > 8:
                raise _damaged(self.path, f"has a tensor of {dimensions} dimensions")
            self.take(8 * dimensions + 4)
            last = max(last, self.number("Q"))
        start = self.file.tell() + -self.file.tell() % max(1, alignment)
        if count and start + last >= self.length:
            raise _damaged(self.path, f"ends after {self.length} bytes, but has data beyond {start + last}")

    def value(self, kind: int) -> Any:
        """A scalar or string; an array as (length, its first items)."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise _damaged(self.path, f"has a value of unknown type {kind}")
        item, count = self.number("I"), self.number("Q")
        if count > MAX_ITEMS:
            raise _damaged(self.path, f"claims a list of {count} items")
        if item in SCALARS:
            code = SCALARS[item]
            raw = self.take(struct.calcsize(f"<{code}") * count)
            return count, struct.unpack_from(f"<{min(count, KEEP_ITEMS)}{code}", raw)
        if item != STRING:
            raise _damaged(self.path, f"has a list of unknown type {item}")
        for _ in range(count):
            self.take(self.number("Q"))
        return count, ()

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode()

    def take(self, count: int) -> bytes:
        if count > min(self.left, MAX_READ):
            raise _damaged(self.path, "ends or grows over all bounds inside its header")
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise _damaged(self.path, "ends inside its header")
        return data
