"""Pickles of plain values come back as they were; others are refused, and nothing that they name is run."""

import datetime
import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrep.data.tar import DataError
from mmrep.evaluation.sources.ground_truth import read_ground_truth
from mmrep.evaluation.sources.plain_pickle import read_plain_pickle

PROTOCOLS = range(6)
SHARED = ["twice"]
PLAIN: dict[str, Any] = {
    "names": ["all_souls_000013", "tête", "", "x" * 300],
    "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**40, 2**70, 1.5, -0.0, float("inf")],
    "others": (
        None,
        True,
        False,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        {},
        [[]],
        b"",
        b"\x00\xff",
        b"y" * 300,
    ),
    "nested": {"a": [{"b": ({"c": [1, 2]},)}], 3: "three"},
    "shared": [SHARED, SHARED],
}
ARRAYS = [
    np.arange(6, dtype=np.int64),
    np.array([5062, 255, -1], dtype=np.int32),
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(12, dtype=np.uint8)[::2],
    np.array([True, False]),
    np.array([1.5, -2], dtype=">f8"),
    np.array([], dtype=np.int64),
    np.array(7, dtype=np.uint16),
]


def listed(value: Any) -> Any:
    """The value with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: listed(each) for key, each in value.items()}
    return [listed(each) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back(protocol: int) -> None:
    found = read_plain_pickle(pickle.dumps(PLAIN, protocol), "file")
    assert found == listed(PLAIN) and repr(found) == repr(listed(PLAIN))
    assert found["shared"][0] is found["shared"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_become_lists(protocol: int) -> None:
    readonly = np.arange(3)
    readonly.flags.writeable = False
    arrays = [*ARRAYS, ARRAYS[0], readonly]
    data = pickle.dumps(arrays, protocol)
    found = read_plain_pickle(data, "file")
    for values, expected in zip(found, pickle.loads(data), strict=True):
        assert values == np.atleast_1d(expected).tolist()
    assert np.dtype(">f8") != np.dtype("f8") == np.dtype("<f8"), "a file's byte order must not change numpy's own types"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scalars_become_numbers(protocol: int) -> None:
    scalars = {"a": np.float32(1.5), "b": np.int64(-3), "c": np.float64(0.1), "d": np.bool_(True)}
    found = read_plain_pickle(pickle.dumps(scalars, protocol), "file")
    assert found == scalars and [type(each) for each in found.values()] == [float, int, float, bool]


def test_text_and_arrays_of_python_2() -> None:
    # What Python 2 wrote under protocol 2: text as SHORT_BINSTRING, an array's bytes too.
    text = b"\x80\x02}q\x00U\x03bbxq\x01]q\x02(G?\xf8\x00\x00\x00\x00\x00\x00K\x07es."
    assert read_plain_pickle(text, "file") == {"bbx": [1.5, 7]}
    array = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04\x87q\x05R"
        b"q\x06(K\x01K\x02\x85q\x07cnumpy\ndtype\nq\x08U\x02i4q\tK\x00K\x01\x87q\nRq\x0b(K\x03U\x01<q\x0cNNNJ\xff\xff"
        b"\xff\xffJ\xff\xff\xff\xffK\x00tq\rb\x89U\x08\xc6\x13\x00\x00\xff\xff\xff\xffq\x0etq\x0fb."
    )
    assert pickle.loads(array, encoding="latin1").tolist() == [5062, -1], "the example is a pickle"
    assert read_plain_pickle(array, "file") == [5062, -1]


class Runs:
    """A pickle of this runs a command when Python reads it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_commands_are_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    import os

    witness = tmp_path / "ran"
    for harm in (
        Runs(os.system, f"touch {witness}"),
        Runs(eval, f"open({str(witness)!r}, 'w')"),
        Runs(subprocess.call, ["touch", str(witness)]),
        Runs(np.save, str(witness), 1),
        Runs(partial, os.system),
    ):
        data = pickle.dumps({"imlist": ["a"], "gnd": [harm]}, protocol)
        with pytest.raises(DataError, match=r"^file: the pickle asks for [\w.]+\.\w+; refused"):
            read_plain_pickle(data, "file")
        assert not witness.exists()
    if protocol < 5:  # the last two are read without running; the first would run
        pickle.loads(pickle.dumps(Runs(os.system, f"touch {witness}"), protocol))
        assert witness.exists(), "the test's pickle must be harmful"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset([1]),
        OrderedDict(a=1),
        Counter("a"),
        datetime.date(2026, 1, 1),
        1j,
        len,
        int,
        Path("x"),
        range(3),
    ],
    ids=repr,
)
def test_other_types_are_refused(value: Any, protocol: int) -> None:
    with pytest.raises(DataError, match=r"^file: the pickle (asks for|has an opcode)"):
        read_plain_pickle(pickle.dumps([value], protocol), "file")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [np.array([Runs(print, "ran")], dtype=object), np.array(["a"]), np.zeros(2, "i4,f4"), np.array(["2026"], "M8[D]")],
    ids=["object", "text", "record", "date"],
)
def test_other_arrays_are_refused(array: Any, protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"^file: .*(numbers|refused)"):
        read_plain_pickle(pickle.dumps(array, protocol), "file")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "data",
    [
        b"cposix\nsystem\n(S'true'\ntR.",  # GLOBAL
        b"(S'true'\niposix\nsystem\n.",  # INST
        b"(cbuiltins\nprint\no.",  # OBJ
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",  # STACK_GLOBAL
        b"Pid\n.",  # PERSID
        b"\x80\x02\x82\x01.",  # EXT1
        b"c__builtin__\nbytes\n(I1000000000000\ntR.",  # as much memory as it likes
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR(I1\n(I5\ntI0\nI0\nS''\ntb.",
    ],
)
def test_crafted_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="^file: "):
        read_plain_pickle(data, "file")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_damage_is_one_line(protocol: int) -> None:
    data = pickle.dumps({**PLAIN, "arrays": ARRAYS}, protocol)
    generator = np.random.default_rng(protocol)
    for cut in generator.integers(0, len(data), 15):
        with pytest.raises(DataError, match=r"^file: [^\n]*$"):
            read_plain_pickle(data[:cut], "file")
    for _ in range(40):
        harmed = bytearray(data)
        harmed[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        try:
            read_plain_pickle(bytes(harmed), "file")
        except DataError as error:
            assert "\n" not in str(error)


def test_the_file_does_not_decide_what_is_imported() -> None:
    assert "antigravity" not in sys.modules
    with pytest.raises(DataError, match=r"antigravity\.fly"):
        read_plain_pickle(b"cantigravity\nfly\n.", "file")
    assert "antigravity" not in sys.modules


def _reduced(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


DOUBLED = b"\x80\x02]" + b"2\x86" * 64  # a tuple of twice the one before, 64 times
LATIN = b"c_codecs\nencode\n"
BOMBS: dict[str, tuple[bytes, str]] = {
    "key": (b"\x80\x02}" + b")" + b"2\x86" * 64 + b"K\x01s.", "unhashable"),
    "deep key": (b"\x80\x02}" + b")" + b"\x85" * 9_000 + b"K\x01s.", "unhashable"),
    "module": (b"\x80\x04" + b")" + b"2\x86" * 64 + b"\x8c\x01a\x93.", "requires str"),
    "encoding": (b"\x80\x02" + _reduced(LATIN, b"X\x01\0\0\0a", b")" + b"2\x86" * 64) + b".", "bytes that are not"),
    "bytes": (
        b"\x80\x02X\xa0\x86\x01\0" + b"x" * 100_000 + b"q\0"
        + _reduced(LATIN, b"h\0", b"X\x06\0\0\0latin1") * 100 + b".",
        "more than 10 times the file",
    ),
    "memo": (b"\x80\x02Nr\xff\xff\xff\xff0h\0.", "truncated, damaged"),
    "bytearray": (b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"a.", "truncated, damaged"),
    "operand below a mark": (b"\x80\x02]](a.", "truncated, damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_of_endless_values_are_refused(name: str) -> None:
    data, reason = BOMBS[name]
    with pytest.raises(DataError, match=reason) as error:
        read_plain_pickle(data, "file")
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [DOUBLED + b".", b"\x80\x02" + b")" + b"\x85" * 19_000 + b".", b"\x80\x02]q\x00h\x00a."],
    ids=["doubling", "levels", "contains itself"],
)
def test_values_without_end_in_a_ground_truth(data: bytes, tmp_path: Path) -> None:
    """Lists that contain each other take no time to read, and the ground truth's checks look at one level."""
    head = b"\x80\x02}(X\x06\0\0\0imlist](X\x01\0\0\0aeX\x07\0\0\0qimlist](X\x01\0\0\0beX\x03\0\0\0gnd]}("
    grades = b"".join(b"X" + len(name).to_bytes(4, "little") + name + data[2:-1] for name in (b"easy", b"hard", b"bbx"))
    path = tmp_path / "gnd.pkl"
    path.write_bytes(head + grades + b"uau.")
    with pytest.raises(DataError, match="easy: expected (a list of )?integers"):
        read_ground_truth(path)


def test_bounds_are_above_a_ground_truth() -> None:
    """Of the size of Revisited Oxford's, twice over."""
    entries = [{"bbx": [1.5, 2, 3, 4], "easy": list(range(50)), "junk": list(range(1000))} for _ in range(140)]
    truth = {"imlist": [f"image_{i}" for i in range(10_000)], "gnd": entries}
    assert read_plain_pickle(pickle.dumps(truth, 2), "file")["gnd"][-1] == entries[-1]
