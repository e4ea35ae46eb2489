"""A restricted unpickler for lists, dicts, numbers, text and numeric arrays.

The ground truth of Revisited Oxford and Paris comes as a pickle. Python's own reader calls whatever function a file
names. This one replaces the few functions that numpy's arrays are written with by its own, and refuses all others.
It builds on the pure-Python unpickler: the C one allocates whatever sizes a file states.
"""

import io
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mmrep.data.tar import DataError

_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
_COPIES, _SPARE_BYTES = 10, 1 << 20
"""Arrays and bytes may take ten times the bytes of the file and 1 MiB more."""
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RecursionError, AssertionError, OSError, struct.error),
)


def read_plain_pickle(data: bytes, where: str) -> Any:
    """Return the content of a pickle of any protocol (0 to 5); tuples and arrays become lists.

    Text that Python 2 wrote is decoded as Latin-1. Containers may contain themselves or each other many times over, so
    check a level's types before you go down to the next one.

    Args:
        data: the file.
        where: the name of the file in messages.

    Raises:
        DataError: the file is truncated or damaged, or holds anything but None, bool, int, float, str, bytes, list,
            tuple, dict and numpy arrays and scalars of numbers.
    """
    try:
        return _PlainUnpickler(data, where).load()
    except DataError:
        raise
    except _DAMAGE as error:
        text = " ".join(str(error).split())[:100]
        raise DataError(f"{where}: truncated, damaged, or not a pickle ({type(error).__name__}: {text})") from error


# What a file decides is typed as Any below: a type checker that fails would print it, however long it is.
class _Dtype:
    def __init__(self, name: Any, *_: Any) -> None:
        if not _PLAIN_DTYPE.fullmatch(name):
            raise ValueError(f"an array of type {name[:20]!r}, where only numbers are read")
        self.dtype = np.dtype(name)

    def restore(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(list[Any]):
    """The values of an array."""

    def __init__(self, unpickler: "_PlainUnpickler") -> None:
        self.unpickler = unpickler

    def restore(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        content = content.encode("latin-1") if isinstance(content, str) else content
        self.unpickler.count(len(content))
        values = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if fortran else "C")
        self[:] = np.atleast_1d(values).tolist()


class _PlainUnpickler(pickle._Unpickler):
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]]

    def __init__(self, data: bytes, where: str) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self.where = where
        self.bytes_left = _COPIES * len(data) + _SPARE_BYTES

    def count(self, size: int) -> None:
        """Bound what is made of values in the file, since one value can be used many times."""
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise DataError(f"{self.where}: arrays of more than {_COPIES} times the file's bytes; refused")

    def find_class(self, module: str, name: str) -> Any:
        """Return our own replacement of a function; nothing is imported."""
        function = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        constructors = {
            "numpy.dtype": _Dtype,
            "numpy.ndarray": None,  # only an argument of _reconstruct
            "numpy.core.multiarray._reconstruct": lambda *_: _Array(self),
            "numpy.core.multiarray.scalar": lambda dtype, raw: self._array(raw, dtype, [1], False)[0],
            "numpy.core.numeric._frombuffer": lambda raw, dtype, shape, order: self._array(
                raw, dtype, shape, order == "F"
            ),
            "_codecs.encode": self._encoded,  # protocols 0 to 2 write bytes this way
            "__builtin__.bytes": lambda: b"",  # empty bytes; an argument could ask for any amount of memory
        }
        if function not in constructors:
            raise DataError(
                f"{self.where}: the pickle asks for {module[:40]}.{name[:40]}; refused, since only lists, dicts, text, "
                "numbers and numpy arrays of numbers are read"
            )
        return constructors[function]

    def _array(self, content: Any, dtype: Any, shape: Any, fortran: bool) -> list[Any]:
        found = _Array(self)
        found.restore((1, shape, dtype, fortran, content))
        return found

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise ValueError("bytes that are not encoded as Latin-1")
        self.count(len(text))
        return text.encode("latin-1")

    def _refused(self) -> None:
        raise DataError(f"{self.where}: the pickle has an opcode that lists, dicts and arrays don't need; refused")

    def _build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].restore(state)

    def _short_tuple(self, size: int) -> None:
        self.stack[-size:] = [self.stack[-size:]]


# Tuples become lists: hashing a tuple as the key of a dict would go through all of its levels.
_ALLOWED = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("EMPTY_LIST", "EMPTY_DICT", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE"),
)
_theirs = pickle._Unpickler.dispatch
_PlainUnpickler.dispatch = dict.fromkeys(_theirs, _PlainUnpickler._refused) | {
    **{code: _theirs[code] for code in (getattr(pickle, name)[0] for name in _ALLOWED)},
    pickle.BUILD[0]: _PlainUnpickler._build,
    pickle.BYTEARRAY8[0]: _theirs[pickle.BINBYTES8[0]],  # it would allocate the size that the file states
    pickle.EMPTY_TUPLE[0]: _theirs[pickle.EMPTY_LIST[0]],
    pickle.TUPLE[0]: _theirs[pickle.LIST[0]],
    pickle.TUPLE1[0]: lambda self: self._short_tuple(1),
    pickle.TUPLE2[0]: lambda self: self._short_tuple(2),
    pickle.TUPLE3[0]: lambda self: self._short_tuple(3),
}
