"""Catalogs: written, read and cached; damaged ones refused; identities of samples."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import colour_samples, write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.data import catalog as catalog_module
from mmrep.data.catalog import Catalog, catalog_of, identity, joined, read_catalog, write_catalog
from mmrep.data.indexing import build_index, load_index
from mmrep.data.remote import ShardCache
from mmrep.data.shards import RemoteShard
from mmrep.data.sources import Sources, check_sources
from mmrep.data.tar import DataError

FIELDS = tuple(Catalog.__annotations__)


def text_samples(count: int, start: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"{i:04d}", {"txt": f"text {i}".encode()}) for i in range(start, start + count)]


def shards_in(folder: Path, counts: tuple[int, ...] = (3, 5, 2)) -> list[Path]:
    return [write_tar(folder / f"{i}.tar", text_samples(count, sum(counts[:i]))) for i, count in enumerate(counts)]


def same(one: Catalog, other: Catalog, but: tuple[str, ...] = ()) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS if name not in but)


def identity_of(*shards: Path) -> int:
    return sum(identity(build_index(shard)) for shard in shards) % 2**64


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose index was asked for."""
    asked: list[str] = []

    def counted(shard: Any) -> Any:
        asked.append(shard.name)
        return load_index(shard)

    monkeypatch.setattr(catalog_module, "load_index", counted)
    return asked


def test_what_a_catalog_says(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    catalog = catalog_of(shards)
    assert len(catalog) == 3 and catalog.samples.tolist() == [3, 5, 2]
    assert catalog.sizes.tolist() == [shard.stat().st_size for shard in shards]
    assert catalog.digests.tolist() == [build_index(shard).digest.encode() for shard in shards]
    assert [catalog.address(1), catalog.name(1)] == [str(shards[1]), "1.tar"]


def test_round_trip_and_a_moved_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = write_tar(tmp_path / "elsewhere/9.tar", text_samples(4))
    catalog = catalog_of([*shards_in(tmp_path / "set/train"), outside])
    place = tmp_path / "set/all.npz"
    write_catalog(catalog, place)
    assert same(read_catalog(str(place)), catalog)
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = read_catalog(str(tmp_path / "moved/all.npz"))
    assert same(moved, catalog, but=("addresses",))
    assert [moved.address(i) for i in range(4)] == [
        *(f"{tmp_path}/moved/train/{i}.tar" for i in range(3)), str(outside)
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path / "moved")
    assert read_catalog("all.npz").address(0) == "train/0.tar"
    write_catalog(catalog_of([Path("train/0.tar")]), Path("one.npz"))
    assert read_catalog(str(tmp_path / "moved/one.npz")).address(0) == f"{tmp_path}/moved/train/0.tar"


def test_names_are_bytes_of_utf8(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "größer 10%.tar", text_samples(2))
    write_catalog(catalog_of([shard]), tmp_path / "c.npz")
    assert read_catalog(f"{tmp_path}/c.npz").address(0) == str(shard)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    """A set behind memory://scale, with its catalog."""
    fs = fsspec.filesystem("memory")
    shards = shards_in(tmp_path / "local")
    write_catalog(catalog_of(shards), tmp_path / "local/all.npz")
    for file in (tmp_path / "local").iterdir():
        fs.pipe(f"/scale/{file.name}", file.read_bytes())
    yield fs
    fs.rm("/scale", recursive=True)


def test_remote_catalog_and_remote_shards(memory: Any, tmp_path: Path) -> None:
    remote = read_catalog("memory://scale/all.npz")
    assert [remote.address(i) for i in range(3)] == [f"memory://scale/{i}.tar" for i in range(3)]
    cache = ShardCache(tmp_path / "cache", 1 << 20)
    walked = catalog_of([RemoteShard(f"memory://scale/{i}.tar", cache) for i in range(3)])
    assert same(walked, remote)
    write_catalog(walked, tmp_path / "of_remote.npz")
    assert same(read_catalog(f"{tmp_path}/of_remote.npz"), walked), "remote addresses stay as they are"
    by_catalog = Sources(DataConfig([SourceConfig("memory://scale/all.npz")], cache_dir=str(tmp_path / "cache")))
    assert by_catalog.through_cache and len(by_catalog) == 10
    sample = by_catalog.sample(7)
    assert (str(sample.shard.path), sample.shard.keys[sample.row]) == ("memory://scale/1.tar", b"0007")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04 not really a zip file", pickle.dumps({"addresses": [b"0.tar"]}), b"\x93NUMPY",
        b"x" * 5000,
    ],
)  # fmt: skip
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.npz: not a catalog, or damaged; `mmrep data index") as caught:
        read_catalog(f"{tmp_path}/c.npz")
    assert "\n" not in str(caught.value)


def changed(tmp_path: Path, **arrays: Any) -> str:
    """A catalog file of which some tables are other ones; None: gone."""
    place = tmp_path / "c.npz"
    write_catalog(catalog_of(shards_in(tmp_path)), place)
    with np.load(place) as file:
        tables = {name: file[name] for name in file.files} | arrays
    np.savez(place, **{name: table for name, table in tables.items() if table is not None})
    return str(place)


@pytest.mark.parametrize("field", [*FIELDS, "version"])
def test_a_missing_table_is_refused(field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a catalog, or damaged"):
        read_catalog(changed(tmp_path, **{field: None}))


def test_pickled_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a catalog, or damaged"):
        read_catalog(changed(tmp_path, digests=np.array([b"a", "b", None], dtype=object)))


@pytest.mark.parametrize(
    ("field", "table"),
    [("samples", np.arange(2)), ("sizes", np.zeros((3, 1), dtype=np.int64)), ("identities", np.array(1, dtype="u8"))],
)
def test_tables_of_other_lengths_are_refused(field: str, table: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tables of different lengths"):
        read_catalog(changed(tmp_path, **{field: table}))
    with pytest.raises(ConfigError, match="without shards"):
        read_catalog(changed(tmp_path, **{name: np.zeros(0, dtype=np.int64) for name in FIELDS}))


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.npz: a catalog of version 3, expected 2; `mmrep data index"):
        read_catalog(changed(tmp_path, version=np.array(3), identities=None))


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
def test_a_truncated_catalog_is_refused(share: float, tmp_path: Path) -> None:
    place = Path(changed(tmp_path))
    place.write_bytes(place.read_bytes()[: int(share * place.stat().st_size)])
    with pytest.raises(ConfigError, match="not a catalog, or damaged"):
        read_catalog(str(place))


def test_no_catalog(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.npz: No such file"):
        read_catalog(f"{tmp_path}/gone.npz")
    with pytest.raises(ConfigError, match=r"gone\.npz: No such file"):
        check_sources(DataConfig([SourceConfig(f"{tmp_path}/gone.npz")]))


def test_the_cached_catalog_is_used_while_it_is_fresh(tmp_path: Path, loads: list[str]) -> None:
    shards = shards_in(tmp_path)
    first = catalog_of(shards)
    assert loads == ["0.tar", "1.tar", "2.tar"]
    assert same(catalog_of(shards), first) and len(loads) == 3
    catalog_of(shards[:2])
    assert len(loads) == 5, "another list of shards has a catalog of its own"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_changed_shard_makes_the_cached_catalog_stale(which: int, tmp_path: Path, loads: list[str]) -> None:
    shards = shards_in(tmp_path)
    before = catalog_of(shards)
    write_tar(shards[which], text_samples(40))
    after = catalog_of(shards)
    assert len(loads) == 6 and after.samples[which] == 40 and not same(before, after)
    assert catalog_of(shards).samples[which] == 40 and len(loads) == 6


def test_a_damaged_cached_catalog_is_made_again(tmp_path: Path, loads: list[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
    shards = shards_in(tmp_path)
    whole = catalog_of(shards)
    (cached,) = (tmp_path / "cache/catalogs").iterdir()
    cached.write_bytes(cached.read_bytes()[:200])
    assert same(catalog_of(shards), whole) and len(loads) == 6


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    shards[1].unlink()
    with pytest.raises(DataError, match=r"1\.tar: No such file"):
        catalog_of(shards)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = shards_in(tmp_path / "set")
    catalog_of(shards[:1])  # indexes only
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="MMREP_CACHE moves the cache"):
        catalog_of(shards)


def test_joined(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    assert same(joined([catalog_of(shards[:1]), catalog_of(shards[1:])]), catalog_of(shards))


# Identity


def test_identity_is_frozen(tmp_path: Path) -> None:
    mixed = [("a", {"txt": b"one", "cls": b"1"}), ("b", {"txt": b""}), ("folder/c", {"json": b"{}", "txt": b"three"})]
    assert f"{identity_of(write_tar(tmp_path / '0.tar', mixed)):016x}" == "65a9c490431399b3"


def test_identity_does_not_depend_on_shards_and_order(tmp_path: Path) -> None:
    """Members that only some samples have, keys of several lengths, members in another order."""
    samples = colour_samples(6) + text_samples(5, 900) + [("a_much_longer_key", {"cls": b"1", "txt": b"x"})]
    whole = identity_of(write_tar(tmp_path / "whole.tar", samples))
    turned = [(key, dict(reversed(members.items()))) for key, members in reversed(samples)]
    assert identity_of(write_tar(tmp_path / "turned.tar", turned)) == whole
    for cut in (1, 6, 8, 11):
        parts = [write_tar(tmp_path / f"{cut}_{i}.tar", part) for i, part in enumerate((samples[:cut], samples[cut:]))]
        assert identity_of(*parts) == whole, cut
    single = [write_tar(tmp_path / f"single_{i}.tar", [sample]) for i, sample in enumerate(samples)]
    assert identity_of(*single) == whole


def test_identity_tells_sets_apart(tmp_path: Path) -> None:
    samples = [("a", {"txt": b"one", "cls": b"1"}), ("b", {"txt": b"two"}), ("c", {"txt": b"three"})]
    others = [
        samples[:2],
        [*samples, ("d", {"txt": b"three"})],
        [*samples[:2], ("d", {"txt": b"three"})],
        [samples[0], ("b", {"txt": b"twoo"}), samples[2]],
        [samples[0], ("b", {"txt": b"three"}), ("c", {"txt": b"two"})],
        [("a", {"txt": b"1", "cls": b"one"}), *samples[1:]],
        [("a", {"txt": b"one"}), ("b", {"txt": b"two", "cls": b"1"}), samples[2]],
        [samples[0], ("b", {"txt": b"two", "json": b""}), samples[2]],
        [("a", {"txt": b"one", "json": b"1"}), *samples[1:]],
        [("A", samples[0][1]), *samples[1:]],
    ]
    shards = [write_tar(tmp_path / f"{i}.tar", other) for i, other in enumerate([samples, *others])]
    assert len({identity_of(shard) for shard in shards}) == len(shards)


def test_identity_of_sources_is_that_of_their_samples(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "one/0.tar", colour_samples(9))
    several = [write_tar(tmp_path / f"several/{i}.tar", colour_samples(3, 3 * i)) for i in range(3)]
    a, b = (Sources(DataConfig([SourceConfig(str(folder))])) for folder in (one.parent, several[0].parent))
    assert a.identity() == b.identity() == a.describe()["identity"] == f"{identity_of(one):016x}"
    assert a.digest() != b.digest()


# Catalogs as sources


def test_sources_of_a_catalog_are_those_of_its_shards(colour_set: Path, tmp_path: Path) -> None:
    shards = f"{colour_set}/train/{{0..2}}.tar"
    write_catalog(catalog_of([colour_set / f"train/{i}.tar" for i in range(3)]), tmp_path / "c.npz")
    for fraction in (0.0, 0.2):
        a, b = (
            Sources(DataConfig([SourceConfig(place)], ValidationConfig(fraction=fraction)))
            for place in (shards, f"{tmp_path}/c.npz")
        )
        assert (a.digest(), a.identity(), len(a)) == (b.digest(), b.identity(), len(b))
        for one, other in [(a.sample(n), b.sample(n)) for n in range(len(a))] + list(
            zip(a.held_out(99), b.held_out(99), strict=True)
        ):
            assert (one.shard.path, one.row, one.number) == (other.shard.path, other.row, other.number)
    both = Sources(DataConfig([SourceConfig([f"{tmp_path}/c.npz", f"{colour_set}/test/0.tar"])]))
    assert len(both) == 64 and both.sample(63).shard.path == colour_set / "test/0.tar"


def test_a_catalog_opens_no_shard(tmp_path: Path) -> None:
    catalog = catalog_of(shards_in(tmp_path / "set"))
    write_catalog(catalog, tmp_path / "set/c.npz")
    for shard in (tmp_path / "set").glob("*.tar"):
        shard.unlink()
    config = DataConfig([SourceConfig(f"{tmp_path}/set/c.npz")], ValidationConfig(fraction=0.25))
    check_sources(config)
    sources = Sources(config)
    assert len(sources) + int(sources.held.sum()) == 10 and sources.digest() and sources.identity()
    with pytest.raises(DataError, match=r"0\.tar: No such file"):
        sources.sample(0)


def test_a_shard_that_changed_since_it_was_catalogued_is_named(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    write_catalog(catalog_of(shards), tmp_path / "c.npz")
    write_tar(shards[1], text_samples(6, 3))
    sources = Sources(DataConfig([SourceConfig(f"{tmp_path}/c.npz")]))
    assert sources.sample(0).shard.path == shards[0]
    with pytest.raises(DataError, match=r"1\.tar: changed since it was catalogued \(5 samples then, 6 now\); .*index"):
        sources.sample(4)


def test_img2datasets_account_of_a_download(tmp_path: Path) -> None:
    shards = shards_in(tmp_path)
    stats = {"count": 8, "successes": 5, "failed_to_download": 3, "failed_to_resize": 0}
    (tmp_path / "1_stats.json").write_text(json.dumps(stats))
    assert catalog_of(shards).listed.tolist() == [0, 8, 0]
    assert Sources(DataConfig([SourceConfig(str(tmp_path))])).describe()["listed"] == 8
    (tmp_path / "0_stats.json").write_text(json.dumps(stats))
    with pytest.raises(DataError, match=r"0_stats\.json: 5 samples were downloaded, but the shard holds 3"):
        catalog_of(shards[:1])
