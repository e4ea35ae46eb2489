"""`mmrep data check` finds every problem of a bad shard."""

from pathlib import Path

import pytest
from conftest import colour_samples, png, write_tar

from mmrep.data.check import Check, check_shards


def test_good_shards(colour_set: Path) -> None:
    report = check_shards(sorted((colour_set / "train").glob("*.tar")))
    assert report.text() == "3 shards, 48 samples, 0 problems"


@pytest.mark.parametrize("workers", [1, 2])
def test_every_problem_is_found(tmp_path: Path, workers: int) -> None:
    good = png((1, 2, 3))
    samples = [
        ("good", {"png": good, "txt": b"fine", "cls": b"1"}),
        ("cut", {"png": good[:-40], "txt": b"fine", "cls": b"1"}),
        ("noimage", {"txt": b"fine", "cls": b"1"}),
        ("notext", {"png": good, "cls": b"1"}),
        ("blank", {"png": good, "txt": b"\n", "cls": b"1"}),
        ("latin", {"png": good, "txt": b"caf\xe9", "cls": b"1"}),
        ("label", {"png": good, "txt": b"fine", "cls": b"one"}),
        ("nolabel", {"png": good, "txt": b"fine"}),
        ("both", {"png": b"?", "txt": b"", "cls": b"1"}),
    ]
    bad = write_tar(tmp_path / "bad.tar", samples)
    torn = write_tar(tmp_path / "torn.tar", colour_samples(4))
    torn.write_bytes(torn.read_bytes()[:3000])
    fine = write_tar(tmp_path / "fine.tar", colour_samples(4))
    report = check_shards([bad, torn, fine, tmp_path / "gone.tar"], Check(deep=True), workers)
    assert (len(report.shards), report.samples) == (4, 13)
    expected = [
        ("'cut'", "member 'png': can't decode image"),
        ("'noimage'", "no image"),
        ("'notext'", "no member 'txt'"),
        ("'blank'", "no caption"),
        ("'latin'", "not UTF-8"),
        ("'label'", "member 'cls': expected an integer"),
        ("'nolabel'", "no member 'cls'"),
        ("'both'", "member 'png': not an image"),
        ("'both'", "member 'txt': no caption"),
    ]
    assert len(report.problems) == len(expected) + 2
    for problem, (key, reason) in zip(report.problems, expected, strict=False):
        assert problem.startswith(f"{bad}: sample {key}") and reason in problem
    assert report.problems[-2].startswith(f"{torn}: ")
    assert report.problems[-1] == f"{tmp_path / 'gone.tar'}: No such file or directory"
    assert report.text().splitlines()[-1] == "4 shards, 13 samples, 11 problems, 8 bad samples (61.54%)"
