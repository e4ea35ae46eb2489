"""The ledger: good runs are proven, every forgery is found."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import colour_samples, write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig
from mmrep.data.ledger import Ledger, LedgerReport, check_ledger
from mmrep.data.loader import Phase, Plan, Steps
from mmrep.data.sources import Sources
from mmrep.model.text_encoder import ClipTokenizer

BATCH = 8
STEPS = 15
"""120 pairs: of 48 samples two and a half epochs."""
ROW = 3 * 8


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(16)


@pytest.fixture
def build(colour_set: Path, tokenizer: ClipTokenizer) -> Callable[..., Steps]:
    """`build(rank, processes)`: a process's batches of the colour set, in blocks of one shard or two."""

    def make(rank: int = 0, processes: int = 1, config: DataConfig | None = None) -> Steps:
        config = config or DataConfig([SourceConfig(f"{colour_set}/train")], shuffle_block=20)
        plan = Plan(seed=3, global_batch=BATCH, steps=STEPS, phases=(Phase(0, (8, 8), (16, 16)),))
        return Steps(Sources(config), config, tokenizer, plan, rank, processes)

    return make


def train(run: Path, build: Callable[..., Steps], processes: int, steps: range, **options: DataConfig) -> None:
    """Writes the ledger of some steps, as the processes of a run do."""
    for rank in range(processes):
        mine = build(rank, processes, **options)
        ledger = Ledger(run, mine, rank)
        for step in steps:
            ledger.write(step, mine.load(step).batch.ids.numpy())


def rows(run: Path, rank: int = 0) -> np.ndarray:
    return np.fromfile(run / f"ledger/rank_{rank}.bin", dtype="<i8").reshape(-1, 3)


def forge(run: Path, table: np.ndarray, rank: int = 0) -> LedgerReport:
    (run / f"ledger/rank_{rank}.bin").write_bytes(table.astype("<i8").tobytes())
    return check_ledger(run)


def test_a_good_run_is_proven(tmp_path: Path, build: Callable[..., Steps]) -> None:
    train(tmp_path, build, 1, range(STEPS))
    report = check_ledger(tmp_path)
    assert report == LedgerReport(pairs=120, repeated=0, replaced=0, epochs=[2], problems=[])
    assert report.text() == (
        "120 pairs, 0 repeated after a resume, 0 replaced; whole epochs: 2; each sample exactly once in every epoch"
    )
    table = rows(tmp_path)
    assert table[:, 0].tolist() == list(range(120))
    assert sorted(table[:48, 1].tolist()) == sorted(table[48:96, 1].tolist()) == list(range(48))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_write_what_one_does(tmp_path: Path, build: Callable[..., Steps], processes: int) -> None:
    train(tmp_path / "one", build, 1, range(STEPS))
    train(tmp_path / "several", build, processes, range(STEPS))
    assert check_ledger(tmp_path / "several") == check_ledger(tmp_path / "one")
    parts = np.concatenate([rows(tmp_path / "several", rank) for rank in range(processes)])
    np.testing.assert_array_equal(parts[np.argsort(parts[:, 0])], rows(tmp_path / "one"))


def test_world_size_changes_at_resumes(tmp_path: Path, build: Callable[..., Steps]) -> None:
    train(tmp_path, build, 2, range(7))
    train(tmp_path, build, 4, range(5, 10))  # two steps again, from a checkpoint
    train(tmp_path, build, 1, range(9, STEPS))
    report = check_ledger(tmp_path)
    assert report == LedgerReport(pairs=120, repeated=3 * BATCH, replaced=0, epochs=[2], problems=[])


def test_a_kill_within_a_record_is_repaired_by_the_resume(tmp_path: Path, build: Callable[..., Steps]) -> None:
    train(tmp_path, build, 1, range(6))
    file = tmp_path / "ledger/rank_0.bin"
    for cut in (1, ROW - 1, 9):
        file.write_bytes(file.read_bytes()[:-cut])
        train(tmp_path, build, 1, range(5, 6))
        assert len(file.read_bytes()) % ROW == 0
    train(tmp_path, build, 1, range(6, STEPS))
    report = check_ledger(tmp_path)
    assert not report.problems and report.pairs == 120 and report.repeated > 0


def test_weighted_sources(tmp_path: Path, colour_set: Path, build: Callable[..., Steps]) -> None:
    weighted = [
        SourceConfig(f"{colour_set}/train/0.tar", weight=3),
        SourceConfig(f"{colour_set}/train/{{1,2}}.tar", weight=1),
    ]
    train(tmp_path, build, 2, range(STEPS), config=DataConfig(weighted))
    assert check_ledger(tmp_path) == LedgerReport(120, 0, 0, [5, 0], [])
    table = rows(tmp_path)
    table[table[:, 1] < 16, 1] = 0
    assert "drawn more than once" in forge(tmp_path, table).problems[0]


def test_replaced_samples_are_counted(tmp_path: Path, build: Callable[..., Steps]) -> None:
    damaged = colour_samples(16)
    damaged[4][1]["png"] = b"no image"
    write_tar(tmp_path / "set/0.tar", damaged)
    config = DataConfig([SourceConfig(f"{tmp_path}/set")], max_bad_fraction=0.5)
    train(tmp_path, build, 1, range(STEPS), config=config)
    report = check_ledger(tmp_path)
    assert report.replaced == int((rows(tmp_path)[:, 1] == 4).sum()) >= 7
    assert not report.problems and 4 not in rows(tmp_path)[:, 2]


# Forgeries


@pytest.fixture
def run(tmp_path: Path, build: Callable[..., Steps]) -> Path:
    """A good run of two processes."""
    train(tmp_path, build, 2, range(STEPS))
    return tmp_path


@pytest.mark.parametrize("row", [0, 17, 58])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_slot(row: int, rank: int, run: Path) -> None:
    table = rows(run, rank)
    slot = table[row, 0]
    report = forge(run, np.delete(table, row, axis=0), rank)
    assert report.problems == [f"slot {slot} is missing (and maybe later ones): 1 in all"] and report.pairs == 119


def test_a_missing_end(run: Path) -> None:
    report = forge(run, rows(run, 0)[:-1], 0)
    assert report.problems == ["slot 115 is missing (and maybe later ones): 1 in all"]
    report = forge(run, rows(run, 1)[:-2], 1)
    assert report.problems == ["slot 115 is missing (and maybe later ones): 1 in all"] and report.pairs == 117


def test_a_batch_that_was_cut_at_its_end(run: Path) -> None:
    report = forge(run, rows(run, 1)[:-1], 1)
    assert report.problems == ["step 14 has 7 of 8 pairs: stopped within it, or cut"] and report.pairs == 119


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_truncated_record(cut: int, run: Path) -> None:
    for rank, expected in ((1, "step 14 has 7 of 8 pairs"), (0, "slot 115 is missing")):
        file = run / f"ledger/rank_{rank}.bin"
        whole = file.read_bytes()
        file.write_bytes(whole[:-cut])
        assert check_ledger(run).problems[0].startswith(expected)
        file.write_bytes(whole)


def test_the_file_of_a_process_is_gone(run: Path) -> None:
    (run / "ledger/rank_0.bin").unlink()
    assert check_ledger(run).problems == ["slot 0 is missing (and maybe later ones): 60 in all"]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_doubled_sample(epoch: int, run: Path) -> None:
    """Also in the epoch that the run ended in."""
    tables = [rows(run, rank) for rank in range(2)]
    first, second = (np.flatnonzero(table[:, 0] // 48 == epoch)[2] for table in tables)
    tables[1][second, 1:] = tables[0][first, 1:]
    assert forge(run, tables[1], 1).problems == [f"samples from number 0 on, epoch {epoch}: 1 drawn more than once"]


def test_samples_swapped_between_epochs(run: Path) -> None:
    table = rows(run)
    here = np.flatnonzero(table[:, 0] < 48)[0]
    there = np.flatnonzero((table[:, 0] >= 48) & (table[:, 0] < 96) & (table[:, 1] != table[here, 1]))[0]
    table[[here, there], 1:] = table[[there, here], 1:]
    assert [problem.partition(":")[0] for problem in forge(run, table).problems] == [
        "samples from number 0 on, epoch 0", "samples from number 0 on, epoch 1"
    ]  # fmt: skip


@pytest.mark.parametrize("column", [1, 2])
def test_another_sample_after_a_resume(column: int, run: Path, build: Callable[..., Steps]) -> None:
    train(run, build, 1, range(12, STEPS))
    assert not check_ledger(run).problems and check_ledger(run).repeated == 24
    table = rows(run)
    table[-2, column] = (table[-2, column] + 1) % 48
    report = forge(run, table)
    assert report.problems[0] == "slot 118: another sample after a resume"


def test_a_sample_that_no_source_has(run: Path) -> None:
    table = rows(run)
    table[5, 1:] = 48
    assert "1 pairs of samples that the sources do not have" in forge(run, table).problems


def test_slots_before_the_first(run: Path) -> None:
    table = rows(run)
    table[5, 0] = -1
    assert forge(run, table).problems[0].startswith("slot 0 is missing")


def test_no_ledger(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing/ledger: no ledger; a run with --data\.ledger true writes one"):
        check_ledger(tmp_path / "nothing")
    (run / "ledger/plan.json").unlink()
    with pytest.raises(ConfigError, match="no ledger"):
        check_ledger(run)


def test_plan(run: Path) -> None:
    plan = json.loads((run / "ledger/plan.json").read_text())
    assert plan == {"starts": [0], "sizes": [48], "global_batch": BATCH}
