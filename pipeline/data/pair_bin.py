"""InsightFace's verification sets: `lfw.bin`, `cfp_fp.bin`, `agedb_30.bin`, …

Such a file is a pickle, of Python 2 or 3, of two lists: the encoded images, two a pair, as byte strings or as uint8
arrays of their bytes, and for each pair whether it shows one person. A pickle can call any function, so it is never
handed to `pickle`: the little machine below knows the operations that lists, byte strings, numbers and arrays need, and
calls nothing. NumPy's constructors are recognised by name and imitated.

This module imports the standard library alone, so preprocessing may use it too.
"""

from __future__ import annotations

import os
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from pipeline.config.errors import UserError

MAX_OPERATIONS = 1_000_000
"""A set of 6,000 pairs takes about 40,000."""

_EXPECTED = "a verification set: a pickle of (list of images, list of bools)"


@dataclass(frozen=True)
class PairBin:
    """A verification set. Pair i is images 2i and 2i + 1."""

    images: list[bytes]
    """Encoded, mostly JPEG; not looked at here."""
    is_same: list[bool]


def read_pair_bin(path: Path) -> PairBin:
    """Read a verification set.

    Raises:
        UserError: unreadable, a pickle that does anything else than build these lists, or lists that do not fit.
    """
    try:
        with open(path, "rb") as file:
            tree = _run(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror})", _EXPECTED) from None
    except _RefusedError as error:
        raise UserError(path, str(error), _EXPECTED) from None
    # What `pickletools` meets in garbage: unknown codes, lengths below zero, text that is no number
    except (ValueError, UnicodeError, OverflowError, struct.error) as error:
        raise UserError(path, f"not a pickle ({str(error).splitlines()[0][:200]})", _EXPECTED) from None
    return _check(path, tree)


def photo_names(number: int, same: bool) -> tuple[tuple[str, int], tuple[str, int]]:
    """What the photos of pair `number` are called, person and number: each pair has people of its own."""
    name = f"pair_{number:05d}"
    return ((name, 1), (name, 2)) if same else ((f"{name}_left", 1), (f"{name}_right", 1))


class _RefusedError(Exception):
    """The pickle does what no verification set does."""


@dataclass(frozen=True)
class _Function:
    """A function that the pickle names; a stand-in, nothing is imported."""

    name: str


@dataclass
class _Dtype:
    """A NumPy element type, by its name."""

    name: str


@dataclass
class _Array:
    """A one-dimensional uint8 array, as its bytes; empty until it is built."""

    data: bytes = b""


class _Limited:
    """An open file for `pickletools`, which asks for as many bytes as the pickle claims to hold."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, count: int) -> bytes:
        data = self._file.read(min(max(count, 0), self._left))
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        line = self._file.readline(2**16)
        self._left -= len(line)
        return line


@dataclass
class _Machine:
    """The pickle's stack and memory."""

    most_bytes: int
    """That functions may make: no more than the file is long, or one long text could be encoded again and again."""
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _RefusedError("a pickle that takes more than it gave")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise _RefusedError("a pickle without a mark where one is needed")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type[Any]) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or not isinstance(self.stack[-1], kind):
            raise _RefusedError(f"a pickle that changes something else than a {kind.__name__.strip('_').lower()}")
        return self.stack[-1]

    def recall(self, place: int) -> Any:
        if place not in self.memo:
            raise _RefusedError("a pickle that recalls what it has not kept")
        return self.memo[place]


def _run(file: IO[bytes], size: int) -> Any:
    """What the pickle of `size` bytes builds."""
    machine = _Machine(size)
    for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], _Limited(file, size)))):
        if count == MAX_OPERATIONS:
            raise _RefusedError(f"a pickle of more than {MAX_OPERATIONS:,} operations")
        if operation.name == "STOP":
            return machine.pop()
        act = _OPERATIONS.get(operation.name)
        if act is None:
            raise _RefusedError(f"a pickle with the operation {operation.name}, which no verification set needs")
        act(machine, argument)
    raise _RefusedError("a pickle without an end")


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _push_python2_string(machine: _Machine, argument: str) -> None:
    machine.stack.append(argument.encode("latin-1"))  # pickletools shows bytes as Latin-1 text


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(len(machine.stack))


def _append(machine: _Machine, _: Any) -> None:
    item = machine.pop()
    machine.top(list).append(item)


def _appends(machine: _Machine, _: Any) -> None:
    items = machine.pop_to_mark()
    machine.top(list).extend(items)


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return act


def _memorise(machine: _Machine, argument: int | None) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.top(object)


def _global(machine: _Machine, argument: str) -> None:
    _push_function(machine, argument.replace(" ", "."))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise _RefusedError("a pickle that names a function by something else than text")
    _push_function(machine, f"{module}.{name}")


def _push_function(machine: _Machine, name: str) -> None:
    known = name.replace("numpy._core.", "numpy.core.")
    if known not in _FUNCTIONS and known != "numpy.ndarray":
        raise _RefusedError(f"a pickle that calls {name[:80]}")
    machine.stack.append(_Function(known))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    if not (isinstance(function, _Function) and function.name in _FUNCTIONS and isinstance(arguments, tuple)):
        raise _RefusedError("a pickle that calls what is no function")
    result = _FUNCTIONS[function.name](*_padded(arguments))
    machine.most_bytes -= len(result) if isinstance(result, bytes) else 0
    if machine.most_bytes < 0:
        raise _RefusedError("a pickle that makes more than it holds")
    machine.stack.append(result)


def _padded(arguments: tuple[Any, ...]) -> list[Any]:
    """Four arguments, for functions that take the first few of them."""
    return [*arguments[:4], *[None] * (4 - len(arguments))]


def _build(machine: _Machine, _: Any) -> None:
    """Fill an array. A type's state is about byte order and fields, of which one-byte types have none."""
    state = machine.pop()
    target = machine.top(object)
    if isinstance(target, _Dtype):
        return
    if not (isinstance(target, _Array) and isinstance(state, tuple) and len(state) == 5):
        raise _RefusedError("a pickle that fills something else than an array")
    _, shape, dtype, _, data = state
    target.data = _array_bytes(data, dtype, shape)


def _array_bytes(data: Any, dtype: Any, shape: Any) -> bytes:
    if not (isinstance(dtype, _Dtype) and dtype.name == "u1" and isinstance(data, bytes)):
        raise _RefusedError("an array that is not of uint8")
    if shape != (len(data),):
        raise _RefusedError(
            "an array of several rows, or of another length; expected an encoded image's bytes in one row"
        )
    return data


def _make_array(kind: Any, _shape: Any, _code: Any, _: Any) -> _Array:
    if kind != _Function("numpy.ndarray"):
        raise _RefusedError("an array of an unknown kind")
    return _Array()


def _make_dtype(name: Any, _align: Any, _copy: Any, _: Any) -> _Dtype:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    known = {"u1": "u1", "|u1": "u1", "uint8": "u1", "b1": "b1", "|b1": "b1", "bool": "b1"}
    if not isinstance(text, str) or text not in known:
        raise _RefusedError("an array of another type than uint8")
    return _Dtype(known[text])


def _make_from_buffer(data: Any, dtype: Any, shape: Any, _order: Any) -> _Array:
    return _Array(_array_bytes(data, dtype, shape))


def _make_scalar(dtype: Any, data: Any, _: Any, __: Any) -> bool:
    if dtype != _Dtype("b1") or data not in (b"\0", b"\1"):
        raise _RefusedError("a number of another type than bool")
    return bool(data == b"\1")


def _encode(text: Any, encoding: Any, _: Any, __: Any) -> bytes:
    """How Python 3 writes bytes for Python 2. The text has no character above 255."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("text where bytes should be")
    return text.encode("latin-1")


def _make_empty(first: Any, _: Any, __: Any, ___: Any) -> bytes:
    """How Python 3 writes no bytes for Python 2."""
    if first is not None:
        raise _RefusedError("a pickle that calls bytes with arguments")
    return b""


_FUNCTIONS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "numpy.core.multiarray._reconstruct": _make_array,
    "numpy.core.multiarray.scalar": _make_scalar,
    "numpy.core.numeric._frombuffer": _make_from_buffer,
    "numpy.dtype": _make_dtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _make_empty,
}

_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "INT", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"), _push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), _push),
    "BYTEARRAY8": lambda machine, argument: machine.stack.append(bytes(argument)),
    **dict.fromkeys(("SHORT_BINSTRING", "BINSTRING"), _push_python2_string),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "MARK": _mark,
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _appends,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), _memorise),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), lambda m, place: m.stack.append(m.recall(place))),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}


def _check(path: Path, tree: Any) -> PairBin:
    """The two lists, item by item."""
    parts = tree if isinstance(tree, tuple | list) else ()
    if len(parts) != 2 or not all(isinstance(part, list | tuple) for part in parts):
        raise UserError(path, "a pickle of something else", _EXPECTED)
    images = [item.data if isinstance(item, _Array) else item for item in parts[0]]
    for number, item in enumerate(images):
        if not isinstance(item, bytes):
            raise UserError(path, f"image {number} is a {type(item).__name__.strip('_').lower()}", "encoded bytes")
    for number, item in enumerate(parts[1]):
        if not isinstance(item, int) or item not in (0, 1):
            raise UserError(path, f"pair {number} is a {type(item).__name__.strip('_').lower()}", "True or False")
    if len(images) != 2 * len(parts[1]) or not images:
        raise UserError(path, f"{len(images):,} images and {len(parts[1]):,} pairs", "two images a pair")
    return PairBin(images, [bool(item) for item in parts[1]])
