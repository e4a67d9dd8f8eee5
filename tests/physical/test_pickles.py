"""Pickles of robots' clients, read as data."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import InvalidRequest
from atoll.physical.serve.adapters.pickles import Record, read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [1.5, None, True, -7, 1 << 70], "c": ("x", b"y", ()), "d": {}},
        [[1, 2], "ß" * 300, {"k": [{"deep": (1, (2, (3,)))}]}],
    ],
)
def test_plain_pickles_are_read_as_they_are(protocol: int, value: Any):
    assert read(pickle.dumps(value, protocol=protocol)) == value


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", ["f4", "f8", "u1", "i8", "b1"])
def test_arrays_are_read_as_they_are(protocol: int, dtype: str):
    picture = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for array in (picture, np.asfortranarray(picture), picture[:, ::2], np.array(3, dtype)):
        got = read(pickle.dumps({"front": array, "again": array}, protocol=protocol))
        assert got["front"].dtype == array.dtype
        assert np.array_equal(got["front"], array)
        assert got["again"] is got["front"]
    assert read(pickle.dumps(np.float32(0.5), protocol=protocol)) == 0.5


def test_what_a_pickle_names_is_a_record():
    got = read(pickle.dumps(print))
    assert (got.module, got.name) == ("builtins", "print")
    got = read(pickle.dumps(Path("/etc")))
    assert isinstance(got, Record)
    assert got.arguments == ("/", "etc")


def bomb() -> bytes:
    """Each of fifty lists holds the one before ten times."""
    value: list[Any] = []
    for _ in range(50):
        value = [value] * 10
    return pickle.dumps(value, protocol=2)


def ring() -> bytes:
    value: list[Any] = []
    value.append(value)
    return pickle.dumps(value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "pickle"),
        (b"\x80\x04", "pickle"),
        (b"nonsense", "pickle"),
        (b"\x80\x02q\x00.", "cannot be read"),
        (b"\x80\x02\x86.", "cannot be read"),
        (pickle.dumps(np.array([1j])), "arrays are of"),
        (pickle.dumps(np.array([1], ">f4")), "little-endian"),
        (pickle.dumps(np.array([{}], object)), "arrays are of"),
        (pickle.dumps(frozenset([1])), "not for data"),
        (ring(), "contains itself"),
        (b"\x80\x02" + b"]" * 5 + b"(" + b"a" * 9 + b".", "cannot be read"),
    ],
)
def test_what_is_no_data_is_refused(data: bytes, says: str):
    with pytest.raises(InvalidRequest, match=says):
        read(data)


def test_what_would_grow_without_end_is_gone_through_once():
    assert len(read(bomb())) == 10
    body = bomb()[2:-1]
    for written_out in (
        b"cnumpy\ndtype\n" + body + b"\x85R.",
        body + b"\x8c\x01x\x93.",
        b"c_codecs\nencode\n" + body + b"X\x06\0\0\0latin1\x86R.",
    ):
        with pytest.raises(InvalidRequest, match="a word was expected"):
            read(b"\x80\x02" + written_out)


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 255))
def test_no_bytes_do_harm(noise: bytes, at: int, byte: int):
    """Noise, and a real pickle with one byte changed, are read as data or refused."""
    real = bytearray(pickle.dumps({"front": np.arange(6, dtype="f4"), "path": Path("/etc"), "n": [1, 2.5, "x"]}))
    real[at % len(real)] = byte
    for data in (b"\x80\x04" + noise + b".", bytes(real)):
        with suppress(InvalidRequest):
            read(data)
