"""Messages as bytes: MessagePack in binary frames, JSON in text frames. Nothing that is read can run code.

An array is a map of `dtype` (little-endian: <f4, <f8, <i4, <i8, |u1, |b1), `shape` and `data` (its raw bytes, row by
row); in JSON it is nested lists.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from atoll.core.errors import InvalidRequest, NotInstalled

DTYPES = {name: np.dtype(name) for name in ("<f4", "<f8", "<i4", "<i8", "|u1", "|b1")}
MAX_DIMENSIONS = 5


def pack(message: Mapping[str, Any], text: bool = False) -> bytes | str:
    """Arrays in `message` are C-contiguous."""
    if text:
        return orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return msgpack().packb(message, default=_array)


def unpack(data: bytes | str) -> dict[str, Any]:
    """A message of either kind. Arrays are as they came: `array` takes them. Raises InvalidRequest."""
    try:
        message = orjson.loads(data) if isinstance(data, str) else msgpack().unpackb(data)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(f"the message is neither MessagePack (binary) nor JSON (text): {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise InvalidRequest("a message is a map with a 'type'", param="type")
    return message


def array(value: Any, name: str) -> np.ndarray:
    """An array as it came over the wire; for arrays of bytes it is a view of them. Raises InvalidRequest."""
    if isinstance(value, Mapping):
        return _from_bytes(value, name)
    if isinstance(value, np.ndarray):
        return value
    try:
        made = np.array(value)
    except ValueError:
        raise InvalidRequest(f"'{name}' has rows of different lengths", param=name) from None
    if made.dtype.kind not in "fiub" or made.ndim > MAX_DIMENSIONS:
        raise InvalidRequest(f"'{name}' must be numbers", param=name)
    return made


def number(message: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A finite number. Raises InvalidRequest."""
    value = message.get(name, default)
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise InvalidRequest(f"'{name}' must be a number", param=name)


def _from_bytes(value: Mapping[str, Any], name: str) -> np.ndarray:
    dtype, shape, data = DTYPES.get(str(value.get("dtype"))), value.get("shape"), value.get("data")
    if dtype is None:
        raise InvalidRequest(f"'{name}.dtype' must be one of {', '.join(DTYPES)}", param=name)
    sizes = shape if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS else [-1]
    if not all(type(size) is int and 0 <= size < 1 << 31 for size in sizes) or not isinstance(data, bytes):
        raise InvalidRequest(f"'{name}' must have a 'shape' of up to {MAX_DIMENSIONS} sizes and 'data'", param=name)
    try:
        return np.frombuffer(data, dtype).reshape(sizes)
    except ValueError:
        told = f"'{name}' has {len(data)} bytes, which is not {sizes} of {dtype.str}"
        raise InvalidRequest(told, param=name) from None


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": value.shape, "data": value.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be sent")


def msgpack() -> Any:
    """The package. Raises NotInstalled."""
    try:
        import msgpack
    except ModuleNotFoundError:
        raise NotInstalled("'msgpack' is not installed; run: make physical") from None
    return msgpack
