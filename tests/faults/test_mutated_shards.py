"""Thousands of damaged shards: every sample is served as it was, or named, or its shard is refused."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mutants import BASES, MUTATORS, WORDS, Base, Mutant, base, key_of

from mmrep.config.data import DataConfig, SourceConfig
from mmrep.data.captions import Captioner
from mmrep.data.catalog import catalog_of, write_catalog
from mmrep.data.check import Check, check_shards
from mmrep.data.decode import read_image
from mmrep.data.indexing import build_index, load_index, sidecar, write_sidecar
from mmrep.data.loader import Loaded, Phase, Plan, Steps, batches
from mmrep.data.pairs import REPLACEMENTS, Bad
from mmrep.data.shards import ShardIndex, read_member
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError
from mmrep.model.text_encoder import ClipTokenizer

KINDS = ("txt", "json:caption", "cls")
CLASSES = 10
BITS = np.array([[0, 0], [2**64 - 1, 0]], dtype=np.uint64)
"""Draws of the first and of the last caption of a sample."""
PLAN = Plan(seed=5, global_batch=4, steps=6, phases=(Phase(0, (8, 8), (16, 16)),))
"""Two epochs of twelve samples."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def captioners(tmp_path_factory: pytest.TempPathFactory) -> list[Captioner]:
    folder = tmp_path_factory.mktemp("names")
    (folder / "classnames.txt").write_text("".join(f"class {i}\n" for i in range(CLASSES)))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    shard = str(folder / "0.tar")
    return [Captioner(SourceConfig(shard, caption=kind), shard, "data.train[0]") for kind in KINDS]


def read(index: ShardIndex, captioners: list[Captioner]) -> tuple[dict[str, object], dict[str, list[str]]]:
    """What a run makes of each sample: its pixels and captions, and what is wrong with it."""
    served, problems = {}, {}
    for row, key in enumerate(index.keys.tolist()):
        content: list[object] = []
        reasons = []
        for part in (None, *captioners):
            try:
                if part is None:
                    image = read_image(index, row)
                    content += [tuple(image.shape), image.numpy().tobytes()]
                else:
                    content += [part.draw(index, row, bits) for bits in BITS]
            except DataError as error:
                # A run adds which captions to choose instead.
                reasons.append(re.sub(r"(has no member .*\(it has [^)]*\)); .*", r"\1", str(error)))
        if reasons:
            problems[key.decode()] = reasons
        else:
            served[key.decode()] = content
    return served, problems


def check_line(line: str, path: Path) -> None:
    assert line.startswith(f"{path}: ") and "\n" not in line, line


def mutants(shard: Base, seed: int, share: float) -> Iterator[Mutant]:
    """A share of the damage that can be done to a shard, which is drawn evenly."""
    draw, kept = random.Random(seed), random.Random(seed + 100)
    for mutator in MUTATORS:
        yield from (mutant for mutant in mutator(shard, draw) if kept.random() < share)


@pytest.mark.parametrize(
    "name", ["ustar", *(pytest.param(name, marks=pytest.mark.long) for name in BASES if name != "ustar")]
)
def test_no_sample_is_lost_uncounted(name: str, tmp_path: Path, captioners: list[Captioner]) -> None:
    """Without an index file, by a run's own reading and by `mmrep data check`: both say the same of every shard."""
    shard = base(*BASES[name])
    good = tmp_path / "good.tar"
    good.write_bytes(shard.data)
    original, problems = read(build_index(good), captioners)
    assert len(original) == len(WORDS) and not problems
    check = Check(deep=True, captions=KINDS, classes=CLASSES)
    outcomes: Counter[str] = Counter()
    for i, mutant in enumerate(mutants(shard, 1, 0.6)):
        about = f"{i}: {mutant.kind}"
        path = tmp_path / f"{i}.tar"
        path.write_bytes(mutant.data)
        report = check_shards([path], check)
        for line in (*report.problems, *report.notes):
            check_line(line, path)
        try:
            index = build_index(path)
        except DataError as error:
            check_line(str(error), path)
            assert report.problems == [str(error)] and report.samples == 0, about
            outcomes["refused"] += 1
        else:
            assert not mutant.refused, about
            served, named = read(index, captioners)
            assert report.problems == [line for lines in named.values() for line in lines], about
            assert report.samples == len(index) and report.shards[0].bad == len(named), about
            for key, lines in named.items():
                assert all(f"sample {key!r}" in line for line in lines), about
            for key, content in original.items():
                if key in mutant.named:
                    assert key in named, f"{about}: {key!r} is not named"
                elif key not in named and served.get(key) != content:
                    assert key in mutant.silent, f"{about}: {key!r} is lost, or not what it was"
                    outcomes["samples altered or gone, which only an index shows"] += 1
            outcomes["named" if named else "served"] += 1
        path.unlink()
    assert sum(outcomes[kind] for kind in ("refused", "named", "served")) > 900 and min(outcomes.values()) > 50


@pytest.mark.parametrize(
    "name", ["ustar", *(pytest.param(name, marks=pytest.mark.long) for name in BASES if name != "ustar")]
)
def test_with_crcs_every_changed_byte_is_noticed(name: str, tmp_path: Path) -> None:
    """With the index file that `mmrep data index` wrote before: every member is as it was, or named."""
    shard = base(*BASES[name])
    good = tmp_path / "good.tar"
    good.write_bytes(shard.data)
    write_sidecar(good)
    beside = sidecar(good).read_bytes()
    check = Check(deep=True)
    noticed = unnoticed = 0
    for i, mutant in enumerate(mutants(shard, 2, 0.4)):
        path = tmp_path / f"{i}.tar"
        path.write_bytes(mutant.data)
        sidecar(path).write_bytes(beside)
        whole = True
        try:
            index = load_index(path)
            rows = {key.decode(): row for row, key in enumerate(index.keys.tolist())}
            for member, data in shard.members:
                try:
                    assert read_member(index, rows[key_of(member)], member.rpartition(".")[2]) == data, (i, mutant.kind)
                except DataError as error:
                    check_line(str(error), path)
                    assert f"sample {key_of(member)!r}" in str(error)
                    whole = False
        except DataError as error:
            check_line(str(error), path)
            whole = False
        noticed, unnoticed = noticed + (not whole), unnoticed + whole
        if i % 8 == 0:
            report = check_shards([path], check)
            assert whole or report.problems, (i, mutant.kind)
        path.unlink()
        sidecar(path).unlink()
    assert noticed > 300 and unnoticed > 100


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(16)


def steps_of(shards: str | list[str], allowed: float, tokenizer: ClipTokenizer) -> Steps:
    config = DataConfig([SourceConfig(shards)], max_bad_fraction=allowed)
    return Steps(Sources(config), config, tokenizer, PLAN, 0, 1)


def slots(loaded: list[Loaded]) -> list[tuple[int, bytes, bytes]]:
    """Number, pixels and text of every slot."""
    found = []
    for step in loaded:
        for i, number in enumerate(step.batch.ids.tolist()):
            tokens = step.batch.tokens[i, : int(step.batch.lengths[i])]
            found.append((number, step.batch.images[i].numpy().tobytes(), tokens.numpy().tobytes()))
    return found


def check_replaced(steps: Steps, undamaged: list[tuple[int, bytes, bytes]], reasons: dict[int, str]) -> None:
    """Slots of good samples hold what they would without the damage, the others a replacement; all bad ones are named.

    Args:
        steps: over the damaged shards.
        undamaged: the slots without the damage.
        reasons: what is wrong with each bad sample.
    """
    loaded = list(batches(steps, 0, 0))
    expected_bad = []
    for slot, (before, now) in enumerate(zip(undamaged, slots(loaded), strict=True)):
        tried = [before[0]]
        if before[0] in reasons:
            tried += steps.order.replacements(slot, REPLACEMENTS).tolist()
        used = next(number for number in tried if number not in reasons)
        expected_bad += [Bad(slot, number, reasons[number]) for number in tried[: tried.index(used)]]
        assert now[0] == used
        assert used != before[0] or now == before
    assert [bad for step in loaded for bad in step.bad] == expected_bad
    assert {bad.number for bad in expected_bad} == reasons.keys()


def test_runs_replace_what_is_bad_and_nothing_else(
    tmp_path: Path, captioners: list[Captioner], tokenizer: ClipTokenizer
) -> None:
    shard = base(*BASES["ustar"])
    good, other = tmp_path / "good" / "0.tar", tmp_path / "1.tar"
    good.parent.mkdir()
    for path in (good, other):
        path.write_bytes(shard.data)
    undamaged = slots(list(batches(steps_of([str(good), str(other)], 0.0, tokenizer), 0, 0)))
    keys = build_index(good).keys.tolist()
    tried = 0
    for i, mutant in enumerate(mutants(shard, 3, 0.15)):
        path = tmp_path / f"{i}" / "0.tar"
        path.parent.mkdir()
        path.write_bytes(mutant.data)
        try:
            index = build_index(path)
        except DataError:
            continue
        _, named = read(index, captioners[:1])
        if index.keys.tolist() != keys or not named or mutant.silent - named.keys():
            continue
        shards = [str(path), str(other)]
        # The caption is drawn before the image is read.
        reasons = {keys.index(key.encode()): lines[-1] for key, lines in named.items()}
        check_replaced(steps_of(shards, 0.5, tokenizer), undamaged, reasons)
        first = next(slot for slot, (number, *_) in enumerate(undamaged) if number in reasons)
        before: list[Loaded] = []
        with pytest.raises(DataError) as error:
            before.extend(batches(steps_of(shards, 0.0, tokenizer), 0, 0))
        assert str(error.value) == reasons[undamaged[first][0]] and len(before) == first // PLAN.global_batch
        tried += 1
    assert tried >= 40


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty])
def test_a_shard_lost_after_it_was_catalogued(
    damage: Callable[[Path], None], tmp_path: Path, tokenizer: ClipTokenizer
) -> None:
    shards = [tmp_path / "0.tar", tmp_path / "1.tar"]
    for path in shards:
        path.write_bytes(base(*BASES["ustar"]).data)
    catalog = tmp_path / "set.npz"
    write_catalog(catalog_of(shards), catalog)
    undamaged = slots(list(batches(steps_of(str(catalog), 0.0, tokenizer), 0, 0)))
    damage(shards[0])
    with pytest.raises(DataError) as error:
        steps_of(str(catalog), 0.0, tokenizer).load(0)
    check_line(str(error.value), shards[0])
    check_replaced(steps_of(str(catalog), 0.5, tokenizer), undamaged, dict.fromkeys(range(6), str(error.value)))
