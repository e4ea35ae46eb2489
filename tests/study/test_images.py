"""Uncertainty over new images: by hand, in simulated studies, and from outcomes that evaluations wrote."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from simulations import errors, least, most

from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.classification import classification_metrics
from mmrep.evaluation.scoring.ranking import retrieval_metrics
from mmrep.study.images import RunOutcomes, bootstrap, crossed, usable
from mmrep.study.statistics import paired_t

TRIALS = 2000
IMAGES = 500
BY_IMAGE = 0.21
"""Variance of head × image, relative to that of a single outcome: 17% of all. The project's own runs have 13 to 35%."""


def test_variance_components_by_hand() -> None:
    """Three seeds and two images. The differences are 0.5 on average, 2 more for the last seed, 0.5 more or less."""
    differences = np.array([[0.0, -1.0], [0.0, 0.0], [3.0, 1.0]])
    found = crossed(differences, np.zeros((3, 2)), 0.95)
    # Means of seeds −0.5, 0, 2; of images 1, 0; squares 7, 1.5 and 1 with 2, 1 and 2 degrees of freedom.
    total = 3.5 + 1.5 - 0.5
    assert found["se"] == pytest.approx((total / 6) ** 0.5)
    assert found["df"] == pytest.approx(total**2 / (3.5**2 / 2 + 1.5**2 / 1 + 0.5**2 / 2))
    assert found["parts"] == pytest.approx({"seeds": 3 / 4.5, "images": 1 / 4.5, "both": 0.5 / 4.5})
    # Alone, two images say less than three seeds, and both together no more than these.
    reach = stats.t.isf(0.025, 1) * (1.5 / 6) ** 0.5
    assert (found["low"], found["high"]) == pytest.approx((0.5 - reach, 0.5 + reach))
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.5 / found["se"], found["df"]))
    shifted = crossed(differences + 7, np.full((3, 2), 7.0), 0.95)
    assert shifted["se"] == pytest.approx(found["se"]) and shifted["low"] == pytest.approx(found["low"])


def outcomes(
    random: np.random.Generator, seeds: int, ratio: float, by_image: float, kind: str, images: int = IMAGES
) -> NDArray:
    """Differences of two equal heads, seeds × images: effects of the seed and the image, and a rest of variance 1.

    `ratio` is the spread of seeds relative to the standard error that the rest has in one run.
    """
    seed, image = errors(random, kind, (seeds, 1)), errors(random, "normal", (1, images))
    rest = random.normal(size=(seeds, images))
    return ratio / images**0.5 * seed + by_image**0.5 * image + rest


@pytest.mark.long
@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_studies_with_new_images_are_right_at_the_level(seeds: int, ratio: int) -> None:
    """Two equal heads that differ on single images. The interval over seeds alone is wrong the more, the more seeds."""
    check_level(seeds, ratio, BY_IMAGE, "normal", 0.95)


@pytest.mark.long
@pytest.mark.parametrize("by_image", [0.0, 0.21, 1.0])
@pytest.mark.parametrize("kind", ["normal", "t3"])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_every_level_and_error_holds_with_new_images(by_image: float, kind: str, confidence: float) -> None:
    for seeds in (3, 5, 10, 20):
        for ratio in (0, 1, 3):
            check_level(seeds, ratio, by_image, kind, confidence)


def check_level(seeds: int, ratio: float, by_image: float, kind: str, confidence: float) -> None:
    random = np.random.default_rng([seeds, round(ratio)])
    wrong = alone = 0
    for _ in range(TRIALS):
        differences = outcomes(random, seeds, ratio, by_image, kind)
        found = crossed(differences, np.zeros_like(differences), confidence)
        excluded = found["low"] > 0 or found["high"] < 0
        assert excluded == (found["p"] < 1 - confidence)
        one = paired_t(differences.mean(1), 1 / IMAGES, confidence)
        alone += bool(abs(one.mean) > one.reach)
        wrong += excluded
        assert found["high"] - found["low"] >= 2 * one.reach - 1e-12 and found["p"] >= one.p - 1e-12
        by_images = paired_t(differences.mean(0), 1 / IMAGES, confidence)
        assert found["se"] >= max(one.error, by_images.error) - 1e-12
    # Satterthwaite's degrees of freedom are too many by a little for five seeds: up to 5.7% false claims instead of 5.
    assert wrong <= most(TRIALS, (1 - confidence) * (1.15 if seeds == 5 else 1), 12), (wrong, seeds, ratio)
    if ratio == 0 and by_image == BY_IMAGE and confidence == 0.95 and kind == "normal":
        expected = 2 * stats.t.sf(stats.t.isf(0.025, seeds - 1) / (1 + seeds * by_image) ** 0.5, seeds - 1)
        assert least(TRIALS, expected, 4) <= alone <= most(TRIALS, expected, 4)
        assert seeds < 20 or alone > 0.33 * TRIALS
        assert seeds < 20 or wrong > 0.03 * TRIALS  # and it isn't right for being wide


def test_right_and_wrong_answers_keep_the_level_too() -> None:
    """Outcomes 0 and 1: images of their own difficulty, which differs between the two equal heads."""
    random, wrong, alone = np.random.default_rng(5), 0, 0
    for _ in range(TRIALS):
        easy = random.normal(size=(1, IMAGES))
        a, b = (
            (easy + 0.6 * random.normal(size=(1, IMAGES)) + 0.8 * random.normal(size=(10, IMAGES)) > 0).astype(float)
            for _ in range(2)
        )
        found, one = crossed(a, b, 0.95), paired_t((a - b).mean(1), 1 / IMAGES, 0.95)
        wrong += found["low"] > 0 or found["high"] < 0
        alone += bool(abs(one.mean) > one.reach)
    assert wrong <= most(TRIALS, 0.05) and alone > 0.2 * TRIALS


def test_equal_outcomes_prove_nothing() -> None:
    ones = np.ones((3, 100))
    same = crossed(ones, ones, 0.95)
    assert same["p"] == 1 and same["low"] < 0 < same["high"] and set(same["parts"].values()) == {0.0}
    one = np.zeros((3, 100))
    one[:, 7] = 1
    assert crossed(ones, ones - one, 0.95)["low"] < 0


def test_bootstrap_is_that_of_single_images() -> None:
    random = np.random.default_rng(3)
    a, b = ((random.random((4, 300)) < share).astype(float) for share in (0.6, 0.5))
    found = bootstrap(a, b, 0.95)
    assert found == bootstrap(a, b, 0.95) != bootstrap(a, b, 0.95, seed=1)
    values = (a - b).mean(0)
    means = values[random.integers(300, size=(20_000, 300))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
    wide = bootstrap(random.normal(size=(2, 20_000)), random.normal(size=(2, 20_000)), 0.95)
    assert wide["high"] - wide["low"] == pytest.approx(2 * 1.96 / 20_000**0.5, rel=0.1)
    assert bootstrap(np.ones((3, 10)), np.zeros((3, 10)), 0.95) == {"low": 1.0, "high": 1.0}


def write(folder: Path, name: str, found: Evaluation, keys: list[str]) -> Path:
    """Write the outcomes of a run as an evaluation does."""
    path = folder / "outcomes" / folder.name / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{"keys": np.array(keys), **found.outcomes})  # type: ignore[arg-type]  # numpy's stub
    return path


def found_retrieval() -> tuple[Evaluation, list[str]]:
    """Images with one to three texts each, in no order."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(40).repeat_interleave(torch.arange(40) % 3 + 1)[torch.randperm(79, generator=generator)]
    images = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(images[owner] + torch.randn(79, 8, generator=generator), dim=1)
    return retrieval_metrics(images, texts, owner), [f"k{i:02}" for i in range(40)]


def found_classes(prefix: str = "") -> tuple[Evaluation, list[str]]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(40, 9, generator=generator)
    found = classification_metrics([scores], torch.arange(40) % 9, 9, prefix)
    return found, [f"k{i:02}" for i in range(40)]


def test_outcomes_of_every_mean_have_the_metrics_value(tmp_path: Path) -> None:
    folder = tmp_path / "ggem-0"
    pairs, keys = found_retrieval()
    write(folder, "pairs", pairs, keys)
    classes, probe = found_classes()[0], found_classes("lp_")[0]._replace(outcomes={})
    write(folder, "set", classes, keys)
    write(folder, "set.linear_probe", probe._replace(outcomes=found_classes("lp_")[0].outcomes), keys)
    label = np.arange(40) % 9
    knn = Evaluation({"knn_acc1@20": 0.5}, {}, {"label": label, "predicted@20": np.where(np.arange(40) < 20, label, 9)})
    write(folder, "set.knn", knn, keys)
    read = RunOutcomes({("ggem", 0): folder})
    counted = []
    for name, found in (("pairs", pairs), ("set", classes), ("set", probe), ("set", knn)):
        for metric, value in found.metrics.items():
            each = read("ggem", 0, f"{name}/{metric}")
            assert (each is None) == metric.endswith("mean_per_class_recall")
            if each is not None:
                counted.append(metric)
                assert each.values.shape == (40,)
                assert usable(each, value, "") is each and each.values.mean() == pytest.approx(value)
    assert len(counted) == 6 + 2 + 2 + 1
    assert read("ggem", 0, "pairs/image_retrieval_map@10") is read("cls", 0, "set/acc1") is None


def test_an_image_counts_with_all_its_texts(tmp_path: Path) -> None:
    """Its outcome is the share of its texts that find it, where all images have as many texts."""
    hits = np.array([[True] * 3, [False] * 3, [True] * 3, [True] * 3])
    found = Evaluation({}, {}, {"image_hits": hits, "image_of_text": np.array([1, 0, 1, 0])})
    write(tmp_path / "a-0", "set", found, ["x", "y"])
    each = RunOutcomes({("a", 0): tmp_path / "a-0"})("a", 0, "set/image_retrieval_recall@5")
    assert each is not None and each.values.tolist() == [0.5, 1.0]


def test_images_are_matched_by_their_keys(tmp_path: Path) -> None:
    found, keys = found_classes()
    order = np.random.default_rng(0).permutation(40)
    moved = found._replace(outcomes={name: each[order] for name, each in found.outcomes.items()})
    write(tmp_path / "a-0", "set", found, keys)
    write(tmp_path / "a-1", "set", moved, [keys[i] for i in order])
    write(tmp_path / "a-2", "set", found, [*keys[:-1], "another"])
    read = RunOutcomes({("a", seed): tmp_path / f"a-{seed}" for seed in range(3)})
    a, b, c = (read("a", seed, "set/acc1") for seed in range(3))
    assert a is not None and b is not None and c is not None
    assert a.keys == b.keys != c.keys
    assert a.values.tolist() == b.values.tolist()


def test_damaged_and_missing_files_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, keys = found_retrieval()
    caplog.set_level(logging.WARNING)

    def read(path: Path, metric: str = "set/image_retrieval_recall@1") -> Any:
        caplog.clear()
        reader = RunOutcomes({("a", 0): path})
        results = reader("a", 0, metric), reader("a", 0, metric)
        assert results == (None, None) or results[0] is not None
        assert len(caplog.records) == (results[0] is None)
        return results[0]

    assert read(tmp_path / "a-0") is None and "set.npz" in caplog.text
    path = write(tmp_path / "a-0", "set", found, keys)
    assert read(tmp_path / "a-0") is not None
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for length in [0, 1, 10, *random.integers(len(whole), size=20).tolist()]:
        path.write_bytes(whole[:length])
        assert read(tmp_path / "a-0") is None
    for place in random.integers(len(whole), size=300).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        read(tmp_path / "a-0")  # None, or what was there: no other error
    for wrong in (found.outcomes["image_of_text"][:-1], found.outcomes["image_of_text"] + 1, np.zeros(0, np.int64)):
        write(tmp_path / "a-0", "set", found._replace(outcomes={**found.outcomes, "image_of_text": wrong}), keys)
        assert read(tmp_path / "a-0") is None
    write(tmp_path / "a-0", "set", found, keys[:-1])
    assert read(tmp_path / "a-0", "set/text_retrieval_recall@1") is None
    write(tmp_path / "a-0", "set", found, keys)
    assert read(tmp_path / "a-0", "set/image_retrieval_recall@7") is None
    assert read(tmp_path / "a-0", "set/acc1") is None and "position" in caplog.text


def test_outcomes_of_another_value_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, keys = found_classes()
    write(tmp_path / "a-0", "set", found, keys)
    each = RunOutcomes({("a", 0): tmp_path / "a-0"})("a", 0, "set/acc1")
    assert usable(each, found.metrics["acc1"] + 0.01, "set/acc1 of a seed 0") is None
    assert "set/acc1 of a seed 0: the outcomes' mean is" in caplog.text
