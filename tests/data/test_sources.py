"""Sources: numbering, the validation split's fixed rule, digests."""

from pathlib import Path

import numpy as np
import pytest
from conftest import colour_samples, write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.data.shards import build_index
from mmrep.data.sources import Sources, check_sources, key_hashes

NOTHING_HELD_OUT = ValidationConfig()


def sources(*configs: SourceConfig, fraction: float = 0.0) -> Sources:
    return Sources(list(configs), ValidationConfig(fraction=fraction))


def held_out(of: Sources) -> set[str]:
    samples = [of.sample(number) for number in of.held_out.tolist()]
    return {f"{sample.shard.path.name}/{sample.shard.keys[sample.row].decode()}" for sample in samples}


def many(path: Path, count: int, prefix: str = "") -> Path:
    """A shard of `count` samples of one byte."""
    return write_tar(path, ((f"{prefix}{i:05d}", {"txt": b"x"}) for i in range(count)))


def test_samples_are_numbered_through(colour_set: Path) -> None:
    all_of_it = sources(SourceConfig(f"{colour_set}/train/{{0..2}}.tar"))
    assert len(all_of_it) == 48
    for number in (0, 15, 16, 47):
        sample = all_of_it.sample(number)
        assert (sample.shard.path.name, sample.row, sample.number) == (f"{number // 16}.tar", number % 16, number)
        assert sample.shard.keys[sample.row].decode() == f"{number:06d}"


def test_sources_without_weights_are_one_set(colour_set: Path) -> None:
    configs = [
        SourceConfig(f"{colour_set}/train/0.tar"),
        SourceConfig(f"{colour_set}/train/{{1,2}}.tar", caption="cls"),
    ]
    one = sources(*configs)
    assert [numbers.tolist() for numbers in one.train] == [list(range(48))]
    assert one.weights == [1.0]
    assert [one.sample(number).captioner.kind for number in (15, 16)] == ["txt", "cls"]
    assert one.captions == ["cls", "txt"]


def test_weighted_sources_stay_apart(colour_set: Path) -> None:
    two = sources(
        SourceConfig(f"{colour_set}/train/0.tar", weight=3), SourceConfig(f"{colour_set}/train/{{1,2}}.tar", weight=1)
    )
    assert [numbers.tolist() for numbers in two.train] == [list(range(16)), list(range(16, 48))]
    assert two.weights == [3.0, 1.0]


def test_validation_rule_is_frozen(tmp_path: Path) -> None:
    index = build_index(many(tmp_path / "00000.tar", 5))
    np.testing.assert_allclose(
        key_hashes(index),
        [0.010477115881176724, 0.007020938900257345, 0.8105125387304468, 0.3522453197173001, 0.17902479765068213],
        rtol=0,
        atol=1e-15,
    )


def test_hash_of_a_key_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    short = key_hashes(build_index(write_tar(tmp_path / "s.tar", [("ab", {"txt": b""}), ("b", {"txt": b""})])))
    long = key_hashes(
        build_index(
            write_tar(tmp_path / "s.tar", [("b", {"txt": b""}), ("a" * 50, {"txt": b""}), ("ab", {"txt": b""})])
        )
    )
    assert short.tolist() == [long[2], long[0]]
    assert len({*short.tolist(), *long.tolist()}) == 3


def test_hashes_are_uniform(tmp_path: Path) -> None:
    hashes = np.concatenate([key_hashes(build_index(many(tmp_path / f"{i}.tar", 1500))) for i in range(4)])
    assert len(np.unique(hashes)) == 6000
    assert hashes.min() >= 0 and hashes.max() < 1
    counts = np.histogram(hashes, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 300).max() < 4 * (6000 * 0.05 * 0.95) ** 0.5


def test_validation_is_disjoint_complete_and_of_its_share(tmp_path: Path) -> None:
    many(tmp_path / "0.tar", 1000)
    many(tmp_path / "1.tar", 1000, "b")
    split = sources(SourceConfig(str(tmp_path)), fraction=0.1)
    train = set(split.train[0].tolist())
    assert not train & set(split.held_out.tolist())
    assert len(train) + len(split.held_out) == 2000
    assert len(split) == len(train)
    assert abs(len(split.held_out) - 200) < 4 * 180**0.5
    smaller = sources(SourceConfig(str(tmp_path)), fraction=0.05)
    assert set(smaller.held_out.tolist()) < set(split.held_out.tolist())
    assert len(sources(SourceConfig(str(tmp_path))).held_out) == 0


def test_validation_does_not_move_with_other_shards_order_or_folder(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        many(tmp_path / f"a/{name}.tar", 200)
    alone = held_out(sources(SourceConfig(f"{tmp_path}/a/1.tar"), fraction=0.2))
    among = held_out(sources(SourceConfig(f"{tmp_path}/a/{{2,1,0}}.tar"), fraction=0.2))
    assert {name for name in among if name.startswith("1.tar")} == alone
    (tmp_path / "a").rename(tmp_path / "b")
    assert held_out(sources(SourceConfig(f"{tmp_path}/b/1.tar"), fraction=0.2)) == alone


def test_a_sample_held_out_of_one_source_is_held_out_of_all(tmp_path: Path) -> None:
    many(tmp_path / "0.tar", 300)
    twice = [SourceConfig(f"{tmp_path}/0.tar", weight=1), SourceConfig(f"{tmp_path}/0.tar", weight=1)]
    split = sources(*twice, fraction=0.2)
    held = split.held_out.tolist()
    assert [number - 300 for number in held if number >= 300] == [number for number in held if number < 300]


def test_a_split_must_leave_something(tmp_path: Path) -> None:
    path = many(tmp_path / "0.tar", 40)
    key = build_index(path).keys[int(np.argmin(key_hashes(build_index(path))))].decode()
    lonely = write_tar(tmp_path / "0.tar", [(key, {"txt": b"x"})])
    with pytest.raises(ConfigError, match=r"data\.validation\.fraction 0\.5: a source has no samples left"):
        sources(SourceConfig(str(lonely)), fraction=0.5)


def test_digest_tells_sources_apart(colour_set: Path, tmp_path: Path) -> None:
    shards = f"{colour_set}/train/{{0..2}}.tar"
    write_tar(tmp_path / "0.tar", colour_samples(16, 1))
    base = sources(SourceConfig(shards)).digest()
    assert sources(SourceConfig(shards)).digest() == base
    others = [
        sources(SourceConfig(f"{colour_set}/train/{{0..1}}.tar")),
        sources(SourceConfig(f"{colour_set}/train/{{1,0,2}}.tar")),
        sources(SourceConfig([str(tmp_path / "0.tar"), f"{colour_set}/train/{{1,2}}.tar"])),
        sources(SourceConfig(shards, caption="cls")),
        sources(SourceConfig(shards, caption="json:caption")),
        sources(SourceConfig(shards), fraction=0.1),
        sources(SourceConfig(shards, weight=2.0)),
    ]
    assert len({base, *(other.digest() for other in others)}) == 1 + len(others)


def test_digest_tells_which_source_has_which_captions(colour_set: Path) -> None:
    def mixed(a: str, b: str) -> str:
        one, two = (SourceConfig(f"{colour_set}/train/{i}.tar", caption=kind) for i, kind in enumerate((a, b)))
        return sources(one, two).digest()

    assert mixed("txt", "cls") != mixed("cls", "txt")


def test_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    digests = []
    for folder in ("a", "b"):
        many(tmp_path / folder / "0.tar", 10)
        digests.append(sources(SourceConfig(f"{tmp_path}/{folder}/0.tar")).digest())
    assert digests[0] == digests[1]


def test_progress_counts_shards(colour_set: Path) -> None:
    seen: list[tuple[int, int]] = []
    Sources(
        [SourceConfig(f"{colour_set}/train/0.tar"), SourceConfig(f"{colour_set}/train/{{1,2}}.tar")],
        NOTHING_HELD_OUT,
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_early_check_names_the_field(tmp_path: Path, colour_set: Path) -> None:
    good = SourceConfig(f"{colour_set}/train/0.tar")
    check_sources(DataConfig([good]))
    with pytest.raises(ConfigError, match=r"data\.train\[1\]\.shards: no such shard: \S+gone\.tar"):
        check_sources(DataConfig([good, SourceConfig(f"{tmp_path}/gone.tar")]))
    many(tmp_path / "a/b/0.tar", 1)
    with pytest.raises(ConfigError, match=r"data\.train\[0\]\.classnames"):
        check_sources(DataConfig([SourceConfig(f"{tmp_path}/a/b/0.tar", caption="cls")]))
