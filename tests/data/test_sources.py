"""Sources: numbering, the validation split's fixed rule, digests."""

from pathlib import Path

import numpy as np
import pytest
from conftest import colour_samples, write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.data.sources import Sample, Sources, check_sources, key_hashes
from mmrep.data.tar import DataError


def sources(*configs: SourceConfig, fraction: float = 0.0) -> Sources:
    return Sources(DataConfig(list(configs), ValidationConfig(fraction=fraction)))


def held_out(of: Sources) -> set[str]:
    return {name(sample) for sample in of.held_out(10**6)}


def trained(of: Sources) -> set[str]:
    return {name(of.sample(number)) for number in range(len(of))}


def name(sample: Sample) -> str:
    return f"{sample.shard.path.name}/{sample.shard.keys[sample.row].decode()}"


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
    assert [group.tolist() for group in one.groups] == [[16, 16, 16]]
    assert (one.starts, one.weights) == ([0], [1.0])
    assert [one.sample(number).captioner.kind for number in (15, 16)] == ["txt", "cls"]
    assert one.captions == ["cls", "txt"]


def test_weighted_sources_stay_apart(colour_set: Path) -> None:
    two = sources(
        SourceConfig(f"{colour_set}/train/0.tar", weight=3), SourceConfig(f"{colour_set}/train/{{1,2}}.tar", weight=1)
    )
    assert [group.tolist() for group in two.groups] == [[16], [16, 16]]
    assert (two.starts, two.weights) == ([0, 16], [3.0, 1.0])


def test_validation_rule_is_frozen(tmp_path: Path) -> None:
    hashes = key_hashes(np.array([b"00000", b"00001", b"x"]), 7)
    assert hashes.tolist() == [0x905C85B0644CC3C8, 0xB95E43054A675DCD, 0x457D872993B2AB07]
    for shard in range(3):
        many(tmp_path / f"{shard:05d}.tar", 12)
    split = sources(SourceConfig(str(tmp_path)), fraction=0.2)
    assert sorted(held_out(split)) == [
        "00000.tar/00000", "00000.tar/00001", "00001.tar/00000", "00001.tar/00001", "00001.tar/00002",
        "00002.tar/00007", "00002.tar/00009",
    ]  # fmt: skip
    assert split.identity() == "6f1b1f09b68bcd7e"


def test_hash_of_a_key_does_not_depend_on_its_neighbours() -> None:
    short = key_hashes(np.array([b"ab", b"b"]), 3)
    long = key_hashes(np.array([b"b", b"a" * 50, b"ab"]), 3)
    assert short.tolist() == [long[2], long[0]]
    assert len({*short.tolist(), *long.tolist()}) == 3


def test_hashes_are_uniform() -> None:
    keys = np.array([b"%05d" % i for i in range(1500)])
    hashes = np.concatenate([key_hashes(keys, start) for start in (0, 1, 2, 2**63)]) / 2**64
    assert len(np.unique(hashes)) == 6000
    counts = np.histogram(hashes, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 300).max() < 4 * (6000 * 0.05 * 0.95) ** 0.5


def test_validation_is_disjoint_complete_and_of_its_share(tmp_path: Path) -> None:
    for shard in range(40):
        many(tmp_path / f"{shard}.tar", 25)
    split = sources(SourceConfig(str(tmp_path)), fraction=0.1)
    assert not trained(split) & held_out(split)
    assert len(trained(split)) + len(held_out(split)) == 1000
    assert len(split) == len(trained(split))
    assert set(split.held.tolist()) == {2, 3}  # of 2.5 a shard
    assert abs(len(held_out(split)) - 100) < 4 * 10**0.5
    assert held_out(sources(SourceConfig(str(tmp_path)), fraction=0.05)) < held_out(split)
    assert not held_out(sources(SourceConfig(str(tmp_path))))


def test_validation_samples_of_many_shards_come_from_few(tmp_path: Path) -> None:
    for shard in range(100):
        many(tmp_path / f"{shard:03d}.tar", 20)
    split = sources(SourceConfig(str(tmp_path)), fraction=0.5)
    few = split.held_out(50)
    assert len(few) == 50
    shards = {sample.shard.path.name for sample in few}
    assert 45 <= len(shards) <= 64 and min(shards) == "000.tar" and max(shards) == "099.tar"
    assert {name(sample) for sample in few} <= held_out(split)


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
    assert len(held_out(split)) == 60
    assert not held_out(split) & trained(split)


def test_a_split_must_leave_something(tmp_path: Path) -> None:
    for i in range(20):  # one of these has its only sample held out: the hash of its name decides
        many(tmp_path / f"{i}.tar", 1)
        try:
            sources(SourceConfig(f"{tmp_path}/{i}.tar"), fraction=0.5)
        except ConfigError as error:
            assert "data.validation.fraction 0.5: a source has no samples left" in str(error)
            return
    pytest.fail("no shard lost its only sample")


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


def test_an_unusable_shard_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_it = sources(SourceConfig(str(many(tmp_path / "0.tar", 5))))
    tried: list[object] = []

    def fail(shard: object) -> None:
        tried.append(shard)
        raise DataError(f"{shard}: gone")

    monkeypatch.setattr("mmrep.data.sources.load_index", fail)
    for number in range(5):
        with pytest.raises(DataError, match="gone"):
            all_of_it.sample(number)
    assert tried == [tmp_path / "0.tar"]


def test_progress_counts_shards(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    shards = [str(many(tmp_path / f"{i}.tar", 2)) for i in range(3)]
    config = DataConfig([SourceConfig(shards[0]), SourceConfig(shards[1:])])
    Sources(config, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1), (1, 2), (2, 2)]
    Sources(config, lambda done, total: seen.append((done, total)))
    assert len(seen) == 3, "the second time the catalogs are known"


def test_early_check_names_the_field(tmp_path: Path, colour_set: Path) -> None:
    good = SourceConfig(f"{colour_set}/train/0.tar")
    check_sources(DataConfig([good]))
    with pytest.raises(ConfigError, match=r"data\.train\[1\]\.shards: no such shard: \S+gone\.tar"):
        check_sources(DataConfig([good, SourceConfig(f"{tmp_path}/gone.tar")]))
    many(tmp_path / "a/b/0.tar", 1)
    with pytest.raises(ConfigError, match=r"data\.train\[0\]\.classnames"):
        check_sources(DataConfig([SourceConfig(f"{tmp_path}/a/b/0.tar", caption="cls")]))


def test_a_shard_twice_is_refused_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many(tmp_path / "a/0.tar", 3)
    monkeypatch.chdir(tmp_path)
    for shards in (["a", f"{tmp_path}/a/0.tar"], ["a/0.tar", "a/../a/0.tar"]):
        with pytest.raises(ConfigError, match=r"0\.tar is listed twice; give a source a weight"):
            sources(SourceConfig(shards))
    with pytest.raises(ConfigError, match="listed twice"):
        sources(SourceConfig("a"), SourceConfig(f"{tmp_path}/a"))
    assert len(sources(SourceConfig("a", weight=1), SourceConfig(f"{tmp_path}/a", weight=2))) == 6


def test_class_names_of_one_source_have_to_agree(tmp_path: Path) -> None:
    for folder, names in (("a", "cat\ndog\n"), ("b", "rose\ntulip\n")):
        write_tar(tmp_path / folder / "train/0.tar", [("k", {"png": b"x", "cls": b"1"})])
        (tmp_path / folder / "classnames.txt").write_text(names)
        (tmp_path / folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    both = [f"{tmp_path}/a/train", f"{tmp_path}/b/train"]
    with pytest.raises(
        ConfigError, match=r"data\.train\[0\]: \S+/a/train/0\.tar and \S+/b/train/0\.tar have different"
    ):
        sources(SourceConfig(both, caption="cls"))
    assert len(sources(SourceConfig(both, caption="cls", classnames=f"{tmp_path}/a/classnames.txt"))) == 2
    assert len(sources(*(SourceConfig(shards, caption="cls") for shards in both))) == 2
