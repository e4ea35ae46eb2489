"""What a study's folder keeps besides the results of its runs: diagnostics, and pictures. This needs no torch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrep.config.tree import CompareConfig
from mmrep.files import DamagedFile, read_json
from mmrep.study.plan import PlannedRun
from mmrep.training.output import DIAGNOSTICS, MAPS, PICTURES

LOG = logging.getLogger("mmrep")


def read_diagnostics(config: CompareConfig, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Return the diagnostics of all runs by `POOL-SEED`, the set and the metric, or nothing where a run has none."""
    found = {}
    for run in runs:
        try:
            found[f"{run.pool}-{run.seed}"] = read_json(run.folder / DIAGNOSTICS)
        except FileNotFoundError:
            return {}
        except DamagedFile as error:
            LOG.warning("%s", error)
            return {}
    if not found:
        return {}
    about = next(iter(found.values()))
    maps = {"maps": MAPS} if (Path(config.output_dir) / MAPS).exists() else {}
    return {"dataset": about["dataset"], "metric": about["metric"], "runs": found, **maps}


def read_pictures(folder: Path) -> list[Any]:
    """Return the pictures of where the arms differ, or none where there is no readable file of them."""
    try:
        found = read_json(folder / PICTURES).get("sets")
    except FileNotFoundError:
        return []
    except DamagedFile as error:
        LOG.warning("%s", error)
        return []
    return found if isinstance(found, list) else []
