"""Pickles of lists, dicts, numbers, text and numeric arrays, read without running anything that they name.

The ground truth of Revisited Oxford and Paris comes as a pickle. Python's own reader calls whatever function a file
asks for; this one knows a handful of opcodes and, of functions, only those that numpy's arrays are written with. A
small file can also stand for values without end (a tuple of a million levels, 2^64 items by doubling a list), so steps,
depth, items and bytes are bounded.
"""

import math
import pickletools
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrep.data.tar import DataError

_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
_VALUES = frozenset(
    (
        *("NONE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_PUTS, _GETS = frozenset(("PUT", "BINPUT", "LONG_BINPUT")), frozenset(("GET", "BINGET", "LONG_BINGET"))
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, Warning)
_MOST_STEPS, _MOST_DEPTH, _SPARE_BYTES = 1_000_000, 32, 1 << 20
"""Opcodes, and items of what is read; levels of containers; bytes of arrays beyond ten times those of the file."""
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Function(str):
    """`module.name`, as the file says; never looked up."""

    __slots__ = ()


def read_plain_pickle(data: bytes, where: str) -> Any:
    """What a pickle of any protocol (0 to 5) holds.

    Text that Python 2 wrote is taken for Latin-1. Whatever `data` says, nothing is imported or called but constructors
    of numpy arrays of numbers.

    Args:
        data: the file.
        where: what messages call it.

    Raises:
        DataError: truncated or damaged, or it holds anything but None, bool, int, float, str, bytes, list, tuple, dict
            and numpy arrays and scalars of numbers.
    """
    machine = _Machine(where, 10 * len(data) + _SPARE_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pickletools only warns of escapes in text that Python would not write
            for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
                if step > _MOST_STEPS:
                    raise DataError(f"{where}: more than {_MOST_STEPS:,} pickle opcodes; write it as JSON")
                if opcode.name == "STOP":
                    return machine.result()
                machine.step(opcode.name, argument)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(
            f"{where}: truncated, damaged, or not a pickle ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    raise DataError(f"{where}: truncated: the pickle has no end")


class _Machine:
    """The stack and memo of a pickle."""

    def __init__(self, where: str, most_bytes: int) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = most_bytes

    def result(self) -> Any:
        """What is left on the stack at the end."""
        if len(self.stack) != 1 or self.marks or isinstance(self.stack[0], _Function):
            raise ValueError("it does not end with one value")
        _check_extent(self.stack[0])
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        """One opcode, by its name in pickletools."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in ("NEWTRUE", "NEWFALSE"):
            stack.append(name == "NEWTRUE")
        elif name == "BYTEARRAY8":
            stack.append(bytes(argument))
        elif name in _PUTS:
            self.memo[argument] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(self._function(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            function = self._pop()
            stack.append(self._function(self._pop(), function))
        elif name == "REDUCE":
            arguments = self._pop()
            stack.append(self._call(self._pop(), arguments))
        elif name == "BUILD":
            state = self._pop()
            self._build(self._top(), state)
        elif name not in ("PROTO", "FRAME"):
            self._container(name)

    def _container(self, name: str) -> None:
        stack = self.stack
        if name in _TUPLES:
            items = [self._pop() for _ in range(_TUPLES[name])][::-1]
            stack.append(tuple(items))
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name == "LIST":
            stack.append(self._marked())
        elif name == "DICT":
            stack.append(_pairs(self._marked()))
        elif name in ("APPEND", "APPENDS"):
            items = [self._pop()] if name == "APPEND" else self._marked()
            _expect(self._top(), list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._marked()
            _expect(self._top(), dict).update(_pairs(items))
        elif name == "POP_MARK":
            self._marked()
        elif name == "POP":
            if self.marks and self.marks[-1] == len(stack):
                self.marks.pop()
            else:
                self._pop()
        elif name == "DUP":
            stack.append(self._top())
        else:
            raise DataError(f"{self.where}: the pickle opcode {name} is refused: lists, dicts and arrays don't need it")

    def _top(self) -> Any:
        """The last item, which lies above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise IndexError("an opcode without its operand")
        return self.stack[-1]

    def _pop(self) -> Any:
        item = self._top()
        self.stack.pop()
        return item

    def _marked(self) -> list[Any]:
        """The items above the last mark; they and the mark leave the stack."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _function(self, module: Any, name: Any) -> _Function:
        asked = f"{_expect(module, str)}.{_expect(name, str)}"
        function = asked.replace("numpy._core.", "numpy.core.")
        if function not in _CONSTRUCTORS and function != "numpy.ndarray":
            raise DataError(
                f"{self.where}: the pickle asks for {asked[:80]}; refused, since only lists, dicts, text, numbers and "
                "numpy arrays of numbers are read"
            )
        return _Function(function)

    def _call(self, function: Any, arguments: Any) -> Any:
        if _expect(function, _Function) not in _CONSTRUCTORS:
            raise DataError(f"{self.where}: the pickle calls {function}; refused")
        made = _CONSTRUCTORS[function](*_expect(arguments, tuple))
        self._count(made)
        return made

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, np.dtype):
            # Only the byte order: the rest of a dtype's state is for records and text.
            target.__setstate__((3, _order(state), None, None, None, -1, -1, 0))  # type: ignore[attr-defined]  # not in the stubs
        else:
            _, shape, dtype, fortran, content = _expect(state, tuple)
            raw = _checked_bytes(content, shape, dtype)
            _expect(target, np.ndarray).__setstate__((1, shape, dtype, bool(fortran), raw))
            self._count(raw)

    def _count(self, made: Any) -> None:
        """Counts the bytes of what is made of values in the file, which one value can be used for many times."""
        self.bytes_left -= made.nbytes if isinstance(made, np.ndarray) else len(made) if isinstance(made, bytes) else 0
        if self.bytes_left < 0:
            raise DataError(f"{self.where}: arrays of more than ten times the file's bytes; refused")


def _check_extent(value: Any) -> None:
    """Raises ValueError where a value, written out, has too many items or levels. It may contain itself."""
    left = _MOST_STEPS
    level = [value]
    for _ in range(_MOST_DEPTH):
        left -= len(level)
        if left < 0:
            raise ValueError(f"more than {_MOST_STEPS:,} items")
        inner = [each for each in level if isinstance(each, list | tuple | dict)]
        if not inner:
            return
        if sum(map(len, inner)) > left:
            raise ValueError(f"more than {_MOST_STEPS:,} items")
        level = [item for each in inner for item in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(f"containers in containers, more than {_MOST_DEPTH} levels deep")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    for key in items[::2]:
        if not isinstance(key, str | bytes | int | float | None):  # hashing a tuple goes through all of its levels
            raise TypeError(f"a {type(key).__name__} as the key of a dict")
    return dict(zip(items[::2], items[1::2], strict=True))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _order(state: Any) -> str:
    order = _expect(_expect(state, tuple)[1], str)
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"byte order {order[:20]!r}")
    return order


def _as_bytes(content: Any) -> bytes:
    """Bytes as they are; text of Python 2, whose bytes were Latin-1 as far as this reader goes."""
    return content.encode("latin-1") if isinstance(content, str) else _expect(content, bytes)


def _checked_bytes(content: Any, shape: Any, dtype: Any) -> bytes:
    """The bytes of an array, found to be as many as shape and dtype say."""
    raw = _as_bytes(content)
    sizes = [_expect(size, int) for size in _expect(shape, tuple)]
    if min(sizes, default=0) < 0 or math.prod(sizes) * _expect(dtype, np.dtype).itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and type {dtype} does not have {len(raw)} bytes")
    return raw


def _dtype(name: Any, *_: Any) -> np.dtype[Any]:
    if not _PLAIN_DTYPE.fullmatch(_expect(name, str)):
        raise ValueError(f"an array of type {name[:20]!r}, where only numbers are read")
    return np.dtype(name, False, True)  # a copy, since its byte order may be set


def _empty_array(kind: Any, *_: Any) -> NDArray[Any]:
    if _expect(kind, _Function) != "numpy.ndarray":
        raise TypeError(f"an array of class {kind}")
    return np.empty(0, np.int8)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> NDArray[Any]:
    raw = _checked_bytes(content, shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _scalar(dtype: Any, content: Any) -> Any:
    return np.frombuffer(_checked_bytes(content, (1,), dtype), dtype)[0]


def _encoded(text: Any, encoding: Any) -> bytes:
    if _expect(encoding, str) != "latin1":
        raise ValueError(f"bytes encoded as {encoding[:20]!r}")
    return _expect(text, str).encode("latin-1")


def _no_bytes() -> bytes:
    return b""  # only empty ones are written by a call: with an argument it would take any amount of memory


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encoded,  # how protocols 0 to 2 write bytes
    "__builtin__.bytes": _no_bytes,
}
