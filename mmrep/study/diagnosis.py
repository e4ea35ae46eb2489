"""Diagnostics of the trained models of a study: `diagnostics.json` in every run, a picture of patch weights."""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrep import distributed
from mmrep.config.checks import ConfigError, MmrepError
from mmrep.config.evaluation import SetConfig
from mmrep.config.study import DiagnosticsConfig
from mmrep.config.tree import CompareConfig
from mmrep.diagnostics.dependence import channel_groups, group_dependence, sample_tokens
from mmrep.diagnostics.exponents import current_exponents, exponents_over_training
from mmrep.diagnostics.features import DeadUnitMeter, Meter, VarianceMeter, watch
from mmrep.diagnostics.maps import patch_weights
from mmrep.diagnostics.occlusion import MASK, accuracy_under_removal, class_predictor, masked_batches
from mmrep.diagnostics.pictures import weights_sheet
from mmrep.diagnostics.resolution import over_resolution
from mmrep.evaluation.embedding.embed import centre_of
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.sources.records import ShardRecords
from mmrep.evaluation.suite import evaluate
from mmrep.evaluation.tasks.zeroshot import embed_classes
from mmrep.files import DamagedFile, read_json, whole_file, write_json
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import load
from mmrep.study.plan import PlannedRun
from mmrep.training.output import DIAGNOSTICS, MAPS, SUMMARY

LOG = logging.getLogger("mmrep")
PRIMARY = {"zeroshot": "acc1", "retrieval": "image_retrieval_recall@1"}


def diagnose(config: CompareConfig, runs: Sequence[PlannedRun], draw: bool = True) -> None:
    """Write the diagnostics of every run that has none yet, and draw the patch weights of the first seed's models.

    Nothing happens where the study asks for no diagnostics or has no set for them. This is a collective: call it on
    every process, since models are evaluated on all of them.

    Args:
        config: the study.
        runs: finished runs.
        draw: whether to draw patch weights.
    """
    wanted = config.study.diagnostics
    if wanted.images == 0 or not config.evaluation.sets or not runs:
        return
    evalset = diagnosable_set(config.evaluation.sets)
    if evalset is None:
        LOG.warning("no diagnostics: no evaluation set has captions, or one class an image")
        return
    for run in runs:
        _diagnosed(run, evalset, config)
    if draw and distributed.rank() == 0:  # this involves no collectives
        draw_patch_weights(config, runs)


def draw_patch_weights(config: CompareConfig, runs: Sequence[PlannedRun]) -> None:
    """Draw the patch weights of the first seed's models, if the study asks for pictures and has a set for them."""
    wanted = config.study.diagnostics
    evalset = diagnosable_set(config.evaluation.sets) if wanted.images and wanted.pictures else None
    if evalset is None or not runs:
        return
    try:
        _draw([run for run in runs if run.seed == runs[0].seed], evalset, wanted.pictures, Path(config.output_dir))
    except (MmrepError, RuntimeError) as error:
        LOG.warning("no pictures of patch weights: %s", error)


def diagnosable_set(sets: Sequence[SetConfig]) -> EvalSet | None:
    """Return the first set with captions or one class an image, whatever its tasks are, or None."""
    for config in sets:
        evalset = open_set(config)
        if evalset.task in PRIMARY and not evalset.multilabel:
            return evalset._replace(tasks=())
    return None


def _diagnosed(run: PlannedRun, evalset: EvalSet, config: CompareConfig) -> None:
    """Write the diagnostics of a run, unless its folder has those of the same model, set and config."""
    folder, wanted = Path(run.config.output_dir), config.study.diagnostics
    summary = read_json(folder / SUMMARY)
    names = f"{evalset.classnames} {evalset.templates}"
    about = f"{summary['model_digest']} {wanted} {evalset.config} {evalset.records.identity()} {names}"
    key = hashlib.sha256(about.encode()).hexdigest()
    place = folder / DIAGNOSTICS
    before: dict[str, Any] = {}
    with suppress(OSError, DamagedFile):
        before = read_json(place)
    # All processes measure or none does, because measuring involves collectives.
    if not distributed.any_process(before.get("key") != key, distributed.exchange_device()):
        return
    LOG.info("%s seed %d: looking inside", run.pool, run.seed)
    model = _load(run)
    about_set = {"dataset": evalset.name, "metric": PRIMARY[evalset.task]}
    content = {"schema": 1, "key": key, **about_set, **_measure(model, evalset, config)}
    content["exponents"] = {**exponents_over_training(folder)._asdict(), "final": current_exponents(model)}
    if distributed.rank() == 0:
        write_json(place, content, indent=1)


def _load(run: PlannedRun) -> DualEncoder:
    return load(run.config.output_dir, "cuda" if torch.cuda.is_available() else "cpu")


def _measure(model: DualEncoder, evalset: EvalSet, config: CompareConfig) -> dict[str, Any]:
    """All that is measured in one model; what its trunk or the set does not allow is left out, with the reason."""
    wanted = config.study.diagnostics
    few, more = _spread(evalset, wanted.images), _spread(evalset, wanted.accuracy_images)
    batch = config.evaluation.batch_size
    parts: dict[str, Callable[[], Any]] = {
        "variance": lambda: _watched(model, VarianceMeter(model), few, batch),
        "dead_units": lambda: _watched(model, DeadUnitMeter(model), few, batch),
        "dependence": lambda: group_dependence(
            sample_tokens(model, _images(few, model, batch)), channel_groups(model, of_head=False)
        )._asdict(),
        "patch_weights": lambda: _weights(model, few, batch),
        "removal": lambda: _removal(model, more, config),
    }
    content: dict[str, Any] = {"images": len(few.records), "accuracy_images": len(more.records), "left_out": {}}
    for size in _sizes(model, wanted):
        parts[f"resolution {size[0]} × {size[1]}"] = partial(_resolution, model, size, more, config)
    for name, measure in parts.items():
        try:
            content[name] = measure()
        except (MmrepError, RuntimeError) as error:
            # A study is not lost for want of a measurement: RuntimeError is what torch raises, out of memory too.
            content[name], content["left_out"][name] = None, " ".join(str(error).split())
    points = [content.pop(name) for name in parts if name.startswith("resolution")]
    content["resolution"] = [point for point in points if point]
    return content


def _spread(evalset: EvalSet, count: int) -> EvalSet:
    """Return at most `count` samples of a set, always the same random ones, since a set may be sorted by class."""
    total = len(evalset.records)
    rows = range(total) if count >= total else sorted(random.Random(0).sample(range(total), count))  # noqa: S311  # no secret
    return evalset._replace(records=evalset.records.take(rows))


def _images(evalset: EvalSet, model: DualEncoder, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(evalset.records), batch):
        part = range(start, min(start + batch, len(evalset.records)))
        yield torch.stack([centre_of(model)(evalset.records.image(i), i) for i in part])


def _watched(model: DualEncoder, meter: Any, evalset: EvalSet, batch: int) -> dict[str, Any]:
    meters: list[Meter] = [meter]
    watch(model, _images(evalset, model, batch), meters)
    return meter.result()._asdict()


def _weights(model: DualEncoder, evalset: EvalSet, batch: int) -> dict[str, float]:
    """Return the sum of an image's patch weights and the share of patches that count, (Σ|w|)² / (N·Σw²), as means."""
    weights = torch.cat([patch_weights(model, images).flatten(1) for images in _images(evalset, model, batch)])
    size = weights.abs()
    spread = size.sum(1).square() / (weights.shape[1] * size.square().sum(1)).clamp(min=1e-30)
    return {"sum": float(weights.sum(1).mean()), "effective_share": float(spread.mean())}


def _removal(model: DualEncoder, evalset: EvalSet, config: CompareConfig) -> dict[str, float]:
    if evalset.task != "zeroshot":
        raise ConfigError(f"removal of the salient part: {evalset.name} has no classes")
    samples = evalset.records.samples if isinstance(evalset.records, ShardRecords) else []
    if not samples or any(MASK not in index.members or index.members[MASK][row, 0] < 0 for index, row in samples):
        raise ConfigError(f"removal of the salient part: the samples of {evalset.name} have no {MASK}")
    classes = embed_classes(model, evalset, config.evaluation.text_batch_size)
    labels = [evalset.records.label(position) for position in range(len(samples))]
    batches = masked_batches(samples, labels, model.image.size, config.evaluation.batch_size)
    return accuracy_under_removal(batches, class_predictor(model, classes))._asdict()


def _sizes(model: DualEncoder, wanted: DiagnosticsConfig) -> list[tuple[int, int]]:
    """Return rows and columns of the image sizes to evaluate at."""
    if wanted.sizes is not None:
        return [(size, size) for size in wanted.sizes]
    grid, patch = model.image.grid, model.image.trunk.patch_embed.patch_size
    scaled = {tuple(max(1, side * part // 4) for side in grid) for part in (3, 4, 5, 6)}
    return sorted((rows * patch[0], columns * patch[1]) for rows, columns in scaled)


def _resolution(model: DualEncoder, size: tuple[int, int], evalset: EvalSet, config: CompareConfig) -> dict[str, Any]:
    def accuracy(other: DualEncoder) -> float:
        result = evaluate({"model": other}, [evalset], config.evaluation)[0]
        return result.evaluation.metrics[PRIMARY[evalset.task]]

    return over_resolution(model, [size], accuracy)[0]._asdict()


def _draw(runs: Sequence[PlannedRun], evalset: EvalSet, count: int, folder: Path) -> None:
    """Draw one sheet: the images, and below them the patch weights of every head."""
    chosen = _spread(evalset, count)
    images, rows = torch.empty(0), []
    for run in runs:
        model = _load(run)
        images = next(_images(chosen, model, count))
        rows.append((run.pool, patch_weights(model, images)))
    with whole_file(folder / MAPS) as part:
        weights_sheet(list(images), rows).save(part, "PNG")
