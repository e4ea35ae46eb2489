"""Which samples one of two models answers right and the other wrong, from their outcomes. This needs no torch."""

import csv
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import require
from mmrep.evaluation.outcome_names import model_folder
from mmrep.files import DamagedFile, whole_file
from mmrep.markup import align
from mmrep.training.output import FINAL, OUTCOMES

Way = Literal["classification", "text_to_image", "image_to_text"]
"""What a query is: an image to classify, a text to find the image of, an image to find a text of."""

NOTE = (
    "These two checkpoints only; says nothing about the pooling: p is about new samples, not about new training runs."
)
TITLES: dict[Way, tuple[str, str]] = {
    "classification": ("classification", "images"),
    "text_to_image": ("text → image, recall@1", "texts"),
    "image_to_text": ("image → text, recall@1", "images"),
}
BOTH, NEITHER = "both", "neither"
_CLASSES = 10
_UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Joined(NamedTuple):
    """The answers of two models to the same queries.

    Attributes:
        dataset: name of the set.
        way: what a query is.
        keys: the image that each query is or belongs to.
        labels: the right class, the text of a query, or the first own text of an image; empty texts where not known.
        right: for each model, which queries it answers right.
        answers: for each model, its first answer, or the rank of the right one where the answer is not known.
        independent: whether no image has several queries.
    """

    dataset: str
    way: Way
    keys: list[str]
    labels: list[str]
    right: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    answers: tuple[list[str], list[str]]
    independent: bool = True

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return self.dataset if self.way == "classification" else f"{self.dataset}.{self.way}"

    def only(self, model: int) -> NDArray[np.int64]:
        """Return the queries that one model, 0 or 1, answers right and the other wrong."""
        return np.flatnonzero(self.right[model] & ~self.right[1 - model])


class Tally(NamedTuple):
    """Numbers of queries by who answers them right, and McNemar's exact p; None where queries are not independent."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float | None


def tally(joined: Joined) -> Tally:
    """Count the queries by who answers them right."""
    a, b = joined.right
    both, only_a, only_b, neither = (int(each.sum()) for each in (a & b, a & ~b, b & ~a, ~(a | b)))
    return Tally(both, only_a, only_b, neither, mcnemar(only_a, only_b) if joined.independent else None)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return McNemar's exact two-sided p: the binomial probability of so uneven a split of the discordant samples."""
    from scipy.special import bdtr

    discordant = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), discordant, 0.5))) if discordant else 1.0


def join(
    dataset: str, a: Mapping[str, NDArray], b: Mapping[str, NDArray], classnames: Sequence[str] = ()
) -> list[Joined]:
    """Return the joined outcomes of two models on a set: none where it has neither one class an image nor captions.

    Args:
        dataset: name of the set.
        a: `keys` and outcomes of the first model, as an evaluation writes them.
        b: those of the second one.
        classnames: in the order of labels; numbers stand for missing ones.

    Raises:
        ConfigError: the outcomes are about other samples.
    """
    for name in ("keys", "label", "image_of_text"):
        equal = (name in a) == (name in b) and (name not in a or np.array_equal(a[name], b[name]))
        require(
            equal,
            f"set {dataset}: the two models were evaluated on other samples, so their outcomes can't be joined: give "
            "--data DIR to evaluate both now",
        )
    keys = a["keys"].tolist()
    if "position" in a and "label" in a:
        right = a["position"] == 1, b["position"] == 1
        answers = _classes(a["predicted"], classnames), _classes(b["predicted"], classnames)
        return [Joined(dataset, "classification", keys, _classes(a["label"], classnames), right, answers)]
    if "image_hits" not in a:
        return []
    owners = a["image_of_text"]
    found = []
    ways: tuple[tuple[Way, str, list[str]], ...] = (
        ("text_to_image", "image", [keys[owner] for owner in owners]),
        ("image_to_text", "text", keys),
    )
    for way, kind, own in ways:
        right = a[f"{kind}_hits"][:, 0], b[f"{kind}_hits"][:, 0]
        ranks = [[f"rank {rank}" for rank in each[f"{kind}_position"]] for each in (a, b)]
        independent = way == "image_to_text" or len(set(owners.tolist())) == len(owners)
        found.append(Joined(dataset, way, own, [""] * len(own), right, (ranks[0], ranks[1]), independent))
    return found


def _classes(labels: NDArray, classnames: Sequence[str]) -> list[str]:
    return [classnames[label] if label < len(classnames) else str(label) for label in labels.tolist()]


def join_runs(names: Mapping[str, str]) -> list[Joined]:
    """Return the joined outcomes that two finished runs keep in their folders.

    Args:
        names: the folders of the runs, by name.

    Raises:
        ConfigError: a folder has no outcomes, or the two have no set in common.
        DamagedFile: a file of outcomes can't be read.
    """
    folders = [outcomes_folder(source) for source in names.values()]
    sets = [{place.stem for place in folder.glob("*.npz")} for folder in folders]
    common = sorted(sets[0] & sets[1])
    listed = [", ".join(sorted(each)) for each in sets]
    (a, b) = names.values()
    require(
        bool(common),
        f"no set in common: {a} has outcomes of {listed[0]}, {b} of {listed[1]}: give --data DIR or --suite FILE",
    )
    found = []
    for name in common:
        first, second = (outcome_arrays(folder / f"{name}.npz") for folder in folders)
        found += join(name, first, second, _classnames(folders[0] / f"{name}.per_class.csv"))
    require(bool(found), f"{', '.join(common)}: no set with captions, or with one class an image")
    return found


def outcomes_folder(source: str) -> Path:
    """Return the folder of a finished run's outcomes.

    Raises:
        ConfigError: there is none.
    """
    place = Path(source)
    place = (place.parent if place.name == FINAL else place).resolve()
    require(place.is_dir(), f"{source}: no such folder; for a model from elsewhere give --data DIR or --suite FILE")
    folder = place / OUTCOMES / model_folder(place.name)
    require(
        folder.is_dir() and any(folder.glob("*.npz")),
        f"{source}: no outcomes in it, as a finished run with evaluation.sets has: give --data DIR or --suite FILE",
    )
    return folder


def outcome_arrays(path: Path) -> dict[str, NDArray]:
    """Return the arrays of a file that an evaluation wrote for a model and a set.

    Raises:
        DamagedFile: it is missing or can't be read.
    """
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
            if "keys" not in found:
                raise ValueError("no keys of samples in it")
            return found
    except _UNREADABLE as error:
        raise DamagedFile(f"{path}: can't be read: {' '.join(str(error).split())}; give --data DIR instead") from error


def _classnames(path: Path) -> list[str]:
    """Return the class names in a run's table of classes; none where it has no such table."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row["class"] for row in csv.DictReader(file)]


class ClassRow(NamedTuple):
    """A class: its images, and how many of them only one of the two models answers right."""

    name: str
    images: int
    right_a: int
    right_b: int
    only_a: int
    only_b: int


def class_rows(joined: Joined) -> list[ClassRow]:
    """Return the classes of a set, the largest difference first; none for retrieval."""
    if joined.way != "classification":
        return []
    labels, (a, b) = np.array(joined.labels), joined.right
    rows = []
    for name in dict.fromkeys(joined.labels):
        own = labels == name
        counts = [int((own & each).sum()) for each in (a, b, a & ~b, b & ~a)]
        rows.append(ClassRow(name, int(own.sum()), *counts))
    return sorted(rows, key=lambda row: (-abs(row.only_a - row.only_b), -(row.only_a + row.only_b), row.name))


def table(joined: Joined, names: Sequence[str]) -> str:
    """Return what is printed about two models on one set."""
    found, (way, unit) = tally(joined), TITLES[joined.way]
    total, (a, b) = len(joined.keys), names
    counts = ("both right", found.both), (f"only {a} right", found.only_a), (f"only {b} right", found.only_b)
    rows = [
        [text, f"{count:,}", f"{100 * count / total:.1f}"] for text, count in (*counts, ("both wrong", found.neither))
    ]
    right = [100 * each.mean() for each in joined.right]
    p = "no p, since several texts of one image are not independent"
    if found.p is not None:
        p = f"McNemar's exact p {'< 0.0001' if found.p < 0.0001 else f'= {found.p:.4f}'}"
    lines = [
        f"{joined.dataset}: {way}, {total:,} {unit}",
        align([["", unit, "%"], *rows]),
        f"right: {a} {right[0]:.2f}%, {b} {right[1]:.2f}%; difference {right[0] - right[1]:+.2f} points; {p}",
    ]
    differing = [row for row in class_rows(joined) if row.only_a != row.only_b][:_CLASSES]
    if differing:
        head = ["class", "images", f"{a} %", f"{b} %", f"only {a}", f"only {b}"]
        shares = [[f"{100 * each / row.images:.1f}" for each in (row.right_a, row.right_b)] for row in differing]
        cells = [
            [row.name, str(row.images), *share, str(row.only_a), str(row.only_b)]
            for row, share in zip(differing, shares, strict=True)
        ]
        lines += ["", "classes that differ most:", align([head, *cells])]
    return "\n".join(lines)


def facts(joined: Joined) -> dict[str, Any]:
    """Return what diff.json has of one set."""
    found, right = tally(joined), [float(each.mean()) for each in joined.right]
    return {
        "dataset": joined.dataset,
        "way": joined.way,
        "n": len(joined.keys),
        **found._asdict(),
        "right_a": right[0],
        "right_b": right[1],
        "difference": right[0] - right[1],
        "classes": [row._asdict() for row in class_rows(joined)],
    }


def write_table(joined: Joined, names: Sequence[str], path: Path) -> None:
    """Write a CSV file with a line for each query: image, label or text, both answers, and who is right."""
    a, b = joined.right
    who = np.array([NEITHER, names[1], names[0], BOTH])[2 * a.astype(int) + b.astype(int)]
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "label", *names, "right"])
        writer.writerows(zip(joined.keys, joined.labels, *joined.answers, who.tolist(), strict=True))
