"""Shards: the index says what the tar holds, reads hit it, and no damage passes in silence."""

import gzip
import io
import os
import resource
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import colour_samples, write_tar

from mmrep.config.checks import ConfigError
from mmrep.data.indexing import _digest, build_index, cached_sidecar, load_index, sidecar, write_index, write_sidecar
from mmrep.data.shards import _OPEN_FILES, ShardIndex, image_extension, read_member
from mmrep.data.tar import DataError, split_name


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", colour_samples(8))


def write_members(path: Path, names: list[str], kind: bytes = tarfile.REGTYPE) -> Path:
    """A shard of members of 5 bytes in this order."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            if kind == tarfile.REGTYPE:
                info.size = 5
            tar.addfile(info, io.BytesIO(b"12345"))
    return path


def contents(index: ShardIndex) -> list[tuple[str, dict[str, bytes]]]:
    """What the index and the reads by offset make of the shard."""
    return [
        (key.decode(), {e: read_member(index, row, e) for e, places in index.members.items() if places[row, 0] >= 0})
        for row, key in enumerate(index.keys.tolist())
    ]


def test_index_is_what_tarfile_finds(shard: Path) -> None:
    index = build_index(shard)
    with tarfile.open(shard) as tar:
        found = {member.name: (member.offset_data, member.size) for member in tar}
    ours = {
        f"{key.decode()}.{extension}": tuple(places[row].tolist())
        for extension, places in index.members.items()
        for row, key in enumerate(index.keys.tolist())
    }
    assert ours == found
    assert len(index) == 8


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_by_offset_in_every_tar_format(tmp_path: Path, tar_format: int) -> None:
    long = "folder/" * 12 + "name" * 12 + "é"  # past the 100 bytes of a plain header
    samples = [("000", {"txt": b"x" * 512}), (long, {"txt": b"", "cls": b"7"}), ("002", {"txt": b"y" * 513})]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tar_format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert contents(build_index(path)) == samples


def test_samples_may_lack_members(tmp_path: Path) -> None:
    samples = [("a", {"jpg": b"1"}), ("b", {"jpg": b"2", "txt": b"two"}), ("c", {"webp": b"3"})]
    index = build_index(write_tar(tmp_path / "a.tar", samples))
    assert contents(index) == samples
    assert [image_extension(index, row) for row in range(3)] == ["jpg", "jpg", "webp"]
    with pytest.raises(DataError, match=r"a\.tar: sample 'a' has no member 'txt' \(it has jpg\)"):
        read_member(index, 0, "txt")
    with pytest.raises(DataError, match=r"sample 'b' has no member 'cls' \(it has jpg, txt\)"):
        read_member(index, 1, "cls")


def test_sample_without_image(tmp_path: Path) -> None:
    index = build_index(write_tar(tmp_path / "a.tar", [("k", {"txt": b"x", "gif": b"y"})]))
    with pytest.raises(DataError, match=r"a\.tar: sample 'k' has no image \(jpg, jpeg, png, webp\); it has gif, txt"):
        image_extension(index, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000.jpg", ("000", "jpg")),
        ("000.seg.PNG", ("000", "seg.png")),
        ("a.b/c/000.jpg", ("a.b/c/000", "jpg")),
        ("./000.jpg", ("./000", "jpg")),
    ],
)
def test_split_name(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


def test_metadata_members_are_no_samples(tmp_path: Path) -> None:
    index = build_index(write_members(tmp_path / "a.tar", ["__index__", "000.txt"]))
    assert index.keys.tolist() == [b"000"]


@pytest.mark.parametrize("name", ["../a.txt", "/etc/a.txt", "b/../../a.txt", "b/../a.txt"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"a\.tar: member '{name}' leaves the shard's folder; store relative names"):
        build_index(write_members(tmp_path / "a.tar", ["000.txt", name]))


BAD_NAMES = {
    "README": r"member 'README' belongs to no sample",
    "._000.jpg": r"member '\._000\.jpg' belongs to no sample",
    "folder/.DS_Store": r"member 'folder/\.DS_Store' belongs to no sample",
}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_members_that_belong_to_no_sample_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"a\.tar: " + BAD_NAMES[name]):
        build_index(write_members(tmp_path / "a.tar", ["000.txt", name]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.txt", "b.txt", "a.cls"], "members of key 'a' are not together"),
        (["a.txt", "a.cls", "b.txt", "a.txt"], "members of key 'a' are not together"),
        (["a.txt", "a.txt"], "key 'a' has two members 'txt'"),
        (["a.jpg", "a.JPG"], "key 'a' has two members 'jpg'"),
    ],
)
def test_duplicates_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=f"a.tar: .*{message}"):
        build_index(write_members(tmp_path / "a.tar", names))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("000.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"a\.tar: member '000\.txt' is a link"):
        build_index(path)


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    """Their bytes in the tar are not those of the file."""
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("000.jpg")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % 4096
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(bytes(header) + bytes(512) + bytes(1024))
    with pytest.raises(DataError, match=r"a\.tar: member '000\.jpg' is sparse"):
        build_index(path)


def test_keys_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        info = tarfile.TarInfo("caf\xe9.txt")
        tar.addfile(info)
    with pytest.raises(DataError, match=r"a\.tar: key .*caf.* is not UTF-8"):
        build_index(path)


def cuts(path: Path) -> Iterator[tuple[str, int]]:
    """Lengths that the file may be cut to, by kind of place, for every member but the first header."""
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    for i, member in enumerate(members):
        padded = -(-member.size // 512) * 512
        if i:
            yield "boundary", member.offset
            yield "inside header", member.offset + 100
        yield "after header", member.offset_data
        yield "inside data", member.offset_data + member.size // 2
        yield "last byte of data", member.offset_data + member.size - 1
        yield "inside padding", member.offset_data + member.size
        yield "end of padding", member.offset_data + padded - 1
    yield "no end marker", members[-1].offset_data + padded


def test_truncation_is_found_wherever_it_is(shard: Path, tmp_path: Path) -> None:
    data = shard.read_bytes()
    kinds = set()
    for kind, length in cuts(shard):
        cut = tmp_path / "cut.tar"
        cut.write_bytes(data[:length])
        with pytest.raises(DataError) as error:
            build_index(cut)
        message = str(error.value)
        assert message.startswith(f"{cut}: "), (kind, message)
        assert "truncated" in message or "unexpected end of data" in message, (kind, message)
        kinds.add(kind)
    assert len(kinds) == 8


def test_damaged_header_is_found_at_every_member(shard: Path, tmp_path: Path) -> None:
    """webdataset stops there in silence: the rest of the shard is never seen."""
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    for i, member in enumerate(members):
        for place in (0, 124, 150):  # name, size, checksum
            bad = bytearray(data)
            bad[member.offset + place] ^= 1
            (tmp_path / "bad.tar").write_bytes(bad)
            with pytest.raises(DataError, match=r"bad\.tar: (damaged header|not a readable tar file) after") as error:
                build_index(tmp_path / "bad.tar")
            if i:
                assert f"after member {members[i - 1].name!r}" in str(error.value)


def test_a_header_of_zeros_does_not_end_the_shard(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        member = tar.getmembers()[5]
    data[member.offset : member.offset_data] = bytes(512)
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tar: damaged header after member"):
        build_index(shard)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable tar file"),
        (bytes(10240), "no samples"),
        (b"hello, this is no tar" * 100, "not a readable tar file"),
        (gzip.compress(bytes(10240), mtime=0), "not a readable tar file"),
    ],
)
def test_what_is_no_shard(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.tar: {message}"):
        load_index(tmp_path / "a.tar")


def test_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tar: No such file"):
        load_index(tmp_path / "gone.tar")


def test_shard_that_shrinks_after_indexing(shard: Path) -> None:
    index = build_index(shard)
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(DataError, match=r"a\.tar: truncated: sample '000007', member 'json': 0 of \d+ bytes"):
        read_member(index, 7, "json")


def equal(a: ShardIndex, b: ShardIndex) -> bool:
    return (
        a.keys.tolist() == b.keys.tolist()
        and list(a.members) == list(b.members)
        and all((a.members[e] == b.members[e]).all() for e in a.members)
        and a.digest == b.digest
        and a.stamp == b.stamp
    )


def falsify(place: Path, shard: Path) -> None:
    """Puts other keys into an index file, so that its use shows."""
    index = load_index(shard)
    keys = np.array([b"falsified%d" % i for i in range(len(index))])
    write_index(replace(index, keys=keys, digest=_digest(keys, index.members)), place)


@pytest.mark.parametrize("beside", [True, False])
def test_index_file_is_used_while_fresh(shard: Path, beside: bool) -> None:
    place = sidecar(shard) if beside else cached_sidecar(shard)
    built = build_index(shard)
    write_index(built, place)
    assert equal(load_index(shard), built)
    falsify(place, shard)
    assert load_index(shard).keys[0] == b"falsified0"
    write_tar(shard, colour_samples(9))
    assert equal(load_index(shard), build_index(shard))
    assert len(load_index(shard)) == 9


def test_bytes_are_compared_with_the_crc(shard: Path) -> None:
    write_sidecar(shard)
    index = load_index(shard)
    extension, places = next(iter(index.members.items()))
    offset = int(places[0, 0])
    data = bytearray(shard.read_bytes())
    data[offset] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=rf"member '{extension}': damaged since it was indexed \(CRC-32 differs\)"):
        read_member(load_index(shard), 0, extension)
    assert read_member(load_index(shard), 1, extension)


def test_same_size_but_changed_later(shard: Path) -> None:
    load_index(shard)
    falsify(cached_sidecar(shard), shard)
    stat = shard.stat()
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load_index(shard).keys[0] == b"000000"


def test_load_caches_the_index(shard: Path) -> None:
    index = load_index(shard)
    assert not sidecar(shard).exists()
    falsify(cached_sidecar(shard), shard)
    assert load_index(shard).keys[0] == b"falsified0"
    assert index.keys[0] == b"000000"


def test_index_of_a_shard_that_changes_meanwhile_is_not_used(shard: Path) -> None:
    index = build_index(shard)
    write_tar(shard, colour_samples(9))
    write_index(index, sidecar(shard))
    assert len(load_index(shard)) == 9


def test_damaged_index_file_is_built_again(shard: Path) -> None:
    built = build_index(shard)
    write_index(built, sidecar(shard))
    good = sidecar(shard).read_bytes()
    damages = [b"", b"nonsense", good[: len(good) // 2], good[:-1]]
    rng = np.random.default_rng(0)
    damages += [good[:i] + bytes([good[i] ^ 0x10]) + good[i + 1 :] for i in rng.integers(0, len(good), 150).tolist()]
    for data in damages:
        sidecar(shard).write_bytes(data)
        assert equal(load_index(shard), built)
    with sidecar(shard).open("wb") as file:
        np.save(file, np.zeros(3))
    assert equal(load_index(shard), built)


def test_pickles_in_index_files_are_not_opened(shard: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    built = build_index(shard)
    arrays = {"keys": np.array([Trap()], dtype=object), "stamp": np.array([1, *built.stamp])}
    with sidecar(shard).open("wb") as file:
        np.savez(file, **arrays)
    assert equal(load_index(shard), built)
    assert not (tmp_path / "sprung").exists()


def test_index_files_leave_nothing_else_behind_and_others_may_read_them(shard: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_index(build_index(shard), sidecar(shard))
    finally:
        os.umask(mask)
    assert sorted(p.name for p in shard.parent.iterdir()) == ["a.tar", "a.tar.index.npz"]
    assert sidecar(shard).stat().st_mode & 0o777 == 0o644


def test_cache_that_cannot_be_written(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(shard))  # a file where a folder is needed
    with pytest.raises(ConfigError, match="MMREP_CACHE moves the cache"):
        load_index(shard)


def test_digest_tells_layouts_apart(tmp_path: Path) -> None:
    samples = colour_samples(8)
    digests = [
        build_index(write_tar(tmp_path / f"{i}.tar", some)).digest
        for i, some in enumerate(
            [
                samples,
                samples,
                samples[:7],
                samples[::-1],
                [("renamed", samples[0][1]), *samples[1:]],
                [(key, {"webp" if e == "png" else e: data for e, data in members.items()}) for key, members in samples],
            ]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_shards_need_few_open_files(tmp_path: Path) -> None:
    """More shards than are kept open, read in turn: evicted ones are closed."""
    indexes = [build_index(write_members(tmp_path / f"{i}.tar", [f"{i}.txt"])) for i in range(200)]
    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, before + 180), hard))
    try:
        for _ in range(3):
            assert {read_member(index, 0, "txt") for index in indexes} == {b"12345"}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_files() <= before + _OPEN_FILES


def test_a_replaced_shard_is_read_anew(shard: Path, tmp_path: Path) -> None:
    assert read_member(load_index(shard), 0, "txt").startswith(b"a red square number 0")
    write_tar(tmp_path / "new.tar", colour_samples(9, start=50)).replace(shard)
    assert read_member(load_index(shard), 0, "txt").startswith(b"a blue square number 50")


def test_real_shards(real_data: Path) -> None:
    index = load_index(real_data / "cifar10/test/0.tar")
    assert len(index) == 10_000
    assert sorted(index.members) == ["cls", "jpg"]
    labels = []
    for path in sorted((real_data / "imagenet_sample/test").glob("*.tar")):
        photos = load_index(path)
        labels += [int(read_member(photos, row, "cls")) for row in range(len(photos))]
    assert sorted(labels) == list(range(1000))


def test_an_index_of_another_shard_of_the_same_size_is_noticed(shard: Path, tmp_path: Path) -> None:
    """Without CRCs the tar header before a member says whether it is still the one that was indexed."""
    index = build_index(shard)
    moved = colour_samples(8)
    moved[0][1]["txt"] = b"longer than it was before " * 30
    other = write_tar(tmp_path / "b.tar", moved)
    renamed = write_tar(tmp_path / "c.tar", [(f"x{key[1:]}", members) for key, members in colour_samples(8)])
    for replacement in (other, renamed):
        laid_over = replace(index, path=replacement)
        with pytest.raises(
            DataError, match=r"sample '000003', member 'txt': .*replaced or damaged since it was indexed"
        ):
            read_member(laid_over, 3, "txt")
    assert read_member(index, 3, "txt").startswith(b"a yellow")
