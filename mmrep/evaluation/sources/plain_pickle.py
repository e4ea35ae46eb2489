"""Pickles of lists, dicts, numbers, text and numeric arrays, read without running anything that they name.

The ground truth of Revisited Oxford and Paris comes as a pickle. Python's own reader calls whatever function a file
asks for; this one knows a handful of opcodes and, of functions, only those that numpy's arrays are written with.
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
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, Warning)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Function(str):
    """`module.name`, as the file says; never looked up."""

    __slots__ = ()


class _Mark:
    """Where on the stack the items of a container begin."""


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
    machine = _Machine(where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pickletools only warns of escapes in text that Python would not write
            for opcode, argument, _ in pickletools.genops(data):
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

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        """What is left on the stack at the end."""
        if len(self.stack) != 1 or isinstance(self.stack[0], (_Mark, _Function)):
            raise ValueError("it does not end with one value")
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
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in _GETS:
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "GLOBAL":
            stack.append(self._function(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            function = stack.pop()
            stack.append(self._function(stack.pop(), function))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(self._call(stack.pop(), arguments))
        elif name == "BUILD":
            state = stack.pop()
            self._build(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            self._container(name)

    def _container(self, name: str) -> None:
        stack = self.stack
        if name in _TUPLES:
            count = _TUPLES[name]
            items = [stack.pop() for _ in range(count)][::-1]
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
            items = [stack.pop()] if name == "APPEND" else self._marked()
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._marked()
            _expect(stack[-1], dict).update(_pairs(items))
        elif name == "POP_MARK":
            self._marked()
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            raise DataError(f"{self.where}: the pickle opcode {name} is refused: lists, dicts and arrays don't need it")

    def _marked(self) -> list[Any]:
        """The items above the last mark; they and the mark leave the stack."""
        start = max(i for i, item in enumerate(self.stack) if isinstance(item, _Mark))
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def _function(self, module: Any, name: Any) -> _Function:
        function = _Function(f"{module}.{name}").replace("numpy._core.", "numpy.core.")
        if function not in _CONSTRUCTORS and function != "numpy.ndarray":
            raise DataError(
                f"{self.where}: the pickle asks for {module}.{name}; refused, since only lists, dicts, text, numbers "
                "and numpy arrays of numbers are read"
            )
        return _Function(function)

    def _call(self, function: Any, arguments: Any) -> Any:
        if _expect(function, _Function) not in _CONSTRUCTORS:
            raise DataError(f"{self.where}: the pickle calls {function}; refused")
        return _CONSTRUCTORS[function](*_expect(arguments, tuple))

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, np.dtype):
            # Only the byte order: the rest of a dtype's state is for records and text.
            target.__setstate__((3, _order(state), None, None, None, -1, -1, 0))  # type: ignore[attr-defined]  # not in the stubs
        else:
            _, shape, dtype, fortran, content = state
            raw = _checked_bytes(content, shape, dtype)
            _expect(target, np.ndarray).__setstate__((1, shape, dtype, bool(fortran), raw))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _order(state: Any) -> str:
    order = _expect(state, tuple)[1]
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"byte order {order!r}")
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
        raise ValueError(f"an array of type {name!r}, where only numbers are read")
    return np.dtype(name, False, True)  # a copy, since its byte order may be set


def _empty_array(kind: Any, *_: Any) -> NDArray[Any]:
    if kind != "numpy.ndarray":
        raise TypeError(f"an array of class {kind}")
    return np.empty(0, np.int8)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> NDArray[Any]:
    raw = _checked_bytes(content, shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C").copy()


def _scalar(dtype: Any, content: Any) -> Any:
    return np.frombuffer(_checked_bytes(content, (1,), dtype), dtype)[0]


def _encoded(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
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
