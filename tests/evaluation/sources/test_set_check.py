"""What is wrong with a set is found before torch is imported, without the network."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import SetConfig
from mmrep.evaluation.sources.check import check_set


def test_torch_is_not_imported() -> None:
    script = (
        "import sys, mmrep.evaluation.sources.check; sys.exit(bool({'torch', 'timm', 'fsspec'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": "coco", "images": "gone"}, "images: no such folder: gone"),
        ({"format": "imagenet-val", "labels": "gone"}, "no such folder"),
        ({"format": "folder"}, "a.json: is a file: give its `format`"),
        ({"format": "folder", "path": "gone"}, "gone: no such folder"),
        (
            {"format": "coco", "images": ".", "task": "zeroshot"},
            "task zeroshot needs classes, but format coco",
        ),
        ({"format": "folder", "task": "retrieval"}, "task retrieval needs captions, but format folder has classes"),
        ({"path": "s3://bucket/x.json", "format": "coco", "images": "."}, "format coco is read from local files"),
        ({"path": "gone.csv", "format": "csv", "images": "."}, "gone.csv: no such file"),
    ],
)
def test_missing_places_and_wrong_tasks(
    fields: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match=reason):
        check_set(SetConfig(**({"path": "a.json"} | fields)))


def test_sets_that_a_task_reads_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.json", "truth.pkl"):
        (tmp_path / name).write_text("{}")
    check_set(SetConfig("pairs.json", task="pairs", images="."))
    check_set(SetConfig(".", task="instance", ground_truth="truth.pkl"))
    with pytest.raises(ConfigError, match=r"pairs\.json: task pairs needs `images`"):
        check_set(SetConfig("pairs.json", task="pairs"))
    with pytest.raises(ConfigError, match="ground_truth: no such file: gone"):
        check_set(SetConfig(".", task="instance", ground_truth="gone"))
    with pytest.raises(ConfigError, match="`ground_truth` makes it a set for task instance alone, got knn"):
        check_set(SetConfig(".", task="knn", ground_truth="truth.pkl", train_split="val"))
