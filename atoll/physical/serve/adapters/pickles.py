"""Pickles read as data: their instructions are followed by a small machine that knows how to build plain values and
numpy arrays, and makes a record of everything else. Nothing named in a pickle is imported or called.

Source of the instructions: Python's `pickletools`. `write` makes pickles of what clients expect to be answered.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from atoll.core.errors import InvalidRequest
from atoll.physical.serve.wire import DTYPES

MAX_STEPS = 1_000_000
MARK = object()


@dataclass(slots=True)
class Name:
    """Something that a pickle names: a class or a function of `module`. It is never looked up."""

    module: str
    name: str


@dataclass(slots=True)
class Record:
    """An object as a pickle describes it: what would make it, with which arguments, and its attributes."""

    made_by: Name
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Blank:
    """An array whose content comes with the next instruction; or a dtype on its way."""

    value: np.ndarray | np.dtype | None = None


Stack = list[Any]


def read(data: bytes) -> Any:
    """The value. Arrays and dtypes are numpy's, objects are `Record`s. Raises InvalidRequest for what is no pickle or
    goes beyond these."""
    stack: Stack = []
    memo: dict[int, Any] = {}
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_STEPS:
                raise InvalidRequest("the pickle is too long")
            if code.name == "STOP":
                return _plain(stack[-1])
            _follow(code.name, argument, stack, memo)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, StopIteration) as error:
        raise InvalidRequest(f"the pickle cannot be read as data: {error}") from None
    raise InvalidRequest("the pickle has no end")


def _follow(name: str, argument: Any, stack: Stack, memo: dict[int, Any]) -> None:
    if name in PUSHES:
        stack.append(PUSHES[name](argument))
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in STEPS:
        STEPS[name](stack)
    elif name not in ("PROTO", "FRAME"):
        raise InvalidRequest(f"the pickle has the instruction {name}, which is not for data")


PUSHES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
         "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
         "BINUNICODE8", "BYTEARRAY8"),
        lambda value: value,
    ),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_DICT": lambda _: {},
    "EMPTY_SET": lambda _: [],
    "MARK": lambda _: MARK,
    "GLOBAL": lambda named: Name(*named.split(" ", 1)),
}  # fmt: skip


def _since_mark(stack: Stack) -> list[Any]:
    """What was pushed since the last mark, which goes too."""
    at = next(i for i in reversed(range(len(stack))) if stack[i] is MARK)
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _pop(stack: Stack, count: int) -> list[Any]:
    if count > len(stack):
        raise ValueError("an instruction finds too little")
    items = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return items


def _tuple(count: int) -> Callable[[Stack], None]:
    return lambda stack: stack.append(tuple(_pop(stack, count)))


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise ValueError("only maps have items")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | int | float):
            raise ValueError("a key of a map is a word or a number")
        target[key] = value


def _extend(target: Any, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise ValueError("only lists are appended to")
    target.extend(items)


def _set_item(stack: Stack) -> None:
    items = _pop(stack, 2)
    _set_items(stack[-1], items)


def _set_many(stack: Stack) -> None:
    items = _since_mark(stack)
    _set_items(stack[-1], items)


def _append(stack: Stack) -> None:
    items = _pop(stack, 1)
    _extend(stack[-1], items)


def _append_many(stack: Stack) -> None:
    items = _since_mark(stack)
    _extend(stack[-1], items)


def _map_since_mark(stack: Stack) -> None:
    made: dict[Any, Any] = {}
    _set_items(made, _since_mark(stack))
    stack.append(made)


def _name(stack: Stack) -> None:
    module, name = _pop(stack, 2)
    stack.append(Name(_word(module), _word(name)))


def _make(stack: Stack) -> None:
    named, arguments = _pop(stack, 2)
    if not isinstance(named, Name) or not isinstance(arguments, tuple):
        raise ValueError("only what is named is made")
    stack.append(_made(named, arguments))


def _build(stack: Stack) -> None:
    [state] = _pop(stack, 1)
    target = stack[-1]
    if isinstance(target, Blank):
        _fill(target, state)
    elif isinstance(target, Record):
        own = state[0] if isinstance(state, tuple) and len(state) == 2 else state
        target.state.update(own or {})
    else:
        raise ValueError("only objects have attributes")


STEPS: dict[str, Callable[[Stack], None]] = {
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "DICT": _map_since_mark,
    "APPEND": _append,
    "APPENDS": _append_many,
    "ADDITEMS": _append_many,
    "SETITEM": _set_item,
    "SETITEMS": _set_many,
    "STACK_GLOBAL": _name,
    "REDUCE": _make,
    "NEWOBJ": _make,
    "BUILD": _build,
    "POP": lambda stack: _pop(stack, 1) and None,
}


def _made(named: Name, arguments: tuple[Any, ...]) -> Any:
    """Arrays and dtypes, as numpy describes them; bytes, as old pickles do; a record of anything else."""
    module = named.module.replace("numpy._core", "numpy.core")
    match (module, named.name):
        case ("_codecs", "encode") if arguments[1] == "latin1":
            return _word(arguments[0]).encode("latin1")
        case ("__builtin__", "bytes") if not arguments:
            return b""
        case ("numpy.core.multiarray", "_reconstruct"):
            return Blank()
        case ("numpy", "dtype"):
            return Blank(_dtype(arguments[0]))
        case ("numpy.core.multiarray", "scalar"):
            return _array(arguments[1], arguments[0], (1,), False)[0].item()
        case ("numpy.core.numeric", "_frombuffer"):
            data, dtype, shape, order = arguments
            return _array(data, dtype, shape, order == "F")
    return Record(named, arguments)


def _word(value: Any) -> str:
    """Lists that hold each other many times are never written out as text."""
    if not isinstance(value, str):
        raise ValueError(f"a word was expected, not a {type(value).__name__}")
    return value


def _dtype(given: Any) -> np.dtype:
    name = _word(given)
    dtype = DTYPES.get(f"|{name}") or DTYPES.get(f"<{name}") or DTYPES.get(name)
    if dtype is None:
        raise ValueError(f"arrays are of {', '.join(DTYPES)}, not {name}")
    return dtype


def _fill(blank: Blank, state: tuple[Any, ...]) -> None:
    """`numpy.dtype.__setstate__` and `numpy.ndarray.__setstate__`."""
    if isinstance(blank.value, np.dtype):
        if state[1] not in ("<", "|"):
            raise ValueError("numbers are little-endian")
        return
    _, shape, dtype, fortran, data = state
    blank.value = _array(data, dtype, shape, fortran)


def _array(data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    made = dtype.value if isinstance(dtype, Blank) else None
    if not isinstance(made, np.dtype) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array is bytes of a dtype")
    return np.frombuffer(bytes(data), made).reshape(shape, order="F" if fortran else "C")


def _plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Without blanks, all the way down. What occurs twice is gone through once, what contains itself is refused."""
    if isinstance(value, Blank):
        return value.value
    if not isinstance(value, dict | list | tuple | Record):
        return value
    done = {} if done is None else done
    if id(value) in done:
        if done[id(value)] is MARK:
            raise ValueError("something contains itself")
        return done[id(value)]
    done[id(value)] = MARK
    made: Any = value
    if isinstance(value, dict):
        made = {key: _plain(each, done) for key, each in value.items()}
    elif isinstance(value, Record):
        value.arguments, value.state = _plain(value.arguments, done), _plain(value.state, done)
    else:
        made = type(value)([_plain(each, done) for each in value])
    done[id(value)] = made
    return made


def write(items: Iterator[tuple[Name, Mapping[str, Any]]]) -> bytes:
    """A pickle of a list of objects, each by its class and attributes. An attribute that is an array becomes a
    `torch.Tensor` of float32 where it is read."""
    parts = [b"\x80\x02]("]
    for kind, attributes in items:
        parts.append(_global(kind) + b")\x81}(")
        parts.extend(_value(name) + _value(value) for name, value in attributes.items())
        parts.append(b"ub")
    return b"".join([*parts, b"e."])


def _value(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return _global(Name("torch", "tensor")) + _value([float(each) for each in value]) + b"\x85R"
    return pickle.dumps(value, protocol=2)[2:-1]


def _global(named: Name) -> bytes:
    return f"c{named.module}\n{named.name}\n".encode()
