"""Numbers in tar headers are what the standard says and nothing else."""

import tarfile
from pathlib import Path

import pytest
from conftest import write_tar

from mmrep.data.indexing import build_index
from mmrep.data.tar import DataError

SAMPLES = [("a", {"txt": b"x" * 8, "png": b"y" * 600}), ("b", {"txt": b"z"})]


def with_size(path: Path, field: bytes, name: bytes = b"a.txt") -> Path:
    """The shard of SAMPLES with another size field in a header, whose checksum is right."""
    data = bytearray(write_tar(path, SAMPLES).read_bytes())
    start = data.index(name + b"\0")
    data[start + 124 : start + 136] = field.ljust(12, b"\0")
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "field",
    [b"0o10", b"0O10", b"1_0", b"+10", b"-10", b"10 1", b"10\x00x", b"\t10", b"8", "\u0661\u0660".encode()],
)
def test_sizes_that_python_takes_but_tar_does_not(tmp_path: Path, field: bytes) -> None:
    with pytest.raises(
        DataError, match=r"s\.tar: not a readable tar file after .*(size that is not octal|bad|invalid)"
    ):
        build_index(with_size(tmp_path / "s.tar", field))


@pytest.mark.parametrize(
    "field", [b"10", b"00000000010", b"10 ", b"      10", b"10 \x00 ", b"\x80" + bytes(10) + b"\x08"]
)
def test_spellings_of_a_size(tmp_path: Path, field: bytes) -> None:
    index = build_index(with_size(tmp_path / "s.tar", field))
    assert index.members["txt"][:, 1].tolist() == [8, 1]


@pytest.mark.parametrize("size", ["1_0", "+8", " 8", "0x8", "", "8.0", "cat"])
def test_size_of_an_extended_header(tmp_path: Path, size: str) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.txt")
        info.pax_headers = {"size": size}
        tar.addfile(info)
    with pytest.raises(DataError, match="member 'a.txt' has a size that is not a number: its header is damaged"):
        build_index(path)
