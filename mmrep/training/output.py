"""What a run's folder holds, and when it may be written to; checked before torch is imported."""

from pathlib import Path

from mmrep.config.checks import require
from mmrep.config.tree import TrainConfig

CONFIG, INITIAL, INVENTORY = "config.yaml", "initial.json", "shards.tsv"
METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def check_output(config: TrainConfig) -> None:
    """A run never overwrites another.

    Raises:
        ConfigError: the folder holds a run and `resume` is `none`, or the checkpoint named does not exist.
    """
    folder = Path(config.output_dir)
    require(not folder.exists() or folder.is_dir(), f"output_dir {folder}: is a file, not a folder")
    used = (folder / METRICS).exists() or (folder / SUMMARY).exists()
    require(
        config.resume != "none" or not used,
        f"output_dir {folder} already holds a run: continue it with --resume auto, or choose another --output_dir",
    )
    require(
        config.resume in ("none", "auto") or Path(config.resume).is_dir(),
        f"resume: no such checkpoint folder: {config.resume} (valid: none, auto, a checkpoint's folder)",
    )
