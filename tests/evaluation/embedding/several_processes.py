"""Run by test_distributed_eval.py: one, two and three gloo processes evaluate a set; what each finds is saved."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmrep.config.checks import MmrepError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.cache import EmbeddingCache, model_digest
from mmrep.evaluation.embedding.embed import shard_for_evaluation
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.suite import evaluate_each
from mmrep.model.create import create_model
from mmrep.model.dual_encoder import DualEncoder

IMAGE = {
    "trunk": "vit_base_patch16_clip_224",
    "args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
SETS = {"classes": "", "captions": "retrieval"}


def models() -> dict[str, DualEncoder]:
    """Two of them, with equal weights on every process."""
    pools: dict[str, Any] = {"avg": "avg", "ggem": {"name": "ggem", "args": {"groups": 4}}}
    return {name: create_model(pool=pool, embed_dim=16, image=IMAGE, text=TEXT).eval() for name, pool in pools.items()}


def everything(root: Path, named: dict[str, DualEncoder], cache: EmbeddingCache | None) -> dict[str, Any]:
    """Embeddings, metrics and outcomes, by name. 16 images: 4 batches of 5, more than divide by two or three."""
    config = EvaluationConfig(batch_size=5, text_batch_size=7, workers=0)
    opened = {name: open_set(SetConfig(str(root / place), name=name)) for name, place in SETS.items()}
    found: dict[str, Any] = {}
    for each in opened.values():
        for name, images in zip(named, Context(named, each, config, cache=cache).images, strict=True):
            found[f"{each.name} {name} images"] = images.numpy()
    # Two batches: fewer than three processes.
    large = EvaluationConfig(batch_size=10, text_batch_size=500, workers=0)
    for results in evaluate_each(named, list(opened.values()), large, cache=cache):
        for result in results:
            for part in (result.evaluation.metrics, result.evaluation.further, result.evaluation.outcomes):
                for name, value in part.items():
                    found[f"{result.evalset.name} {result.model} {name}"] = np.asarray(value)
    return found


def work(rank: int, world: int, root: Path, out: Path) -> None:
    """What one process does."""
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/store{world}", rank=rank, world_size=world)
    named, place = models(), out / f"cache{world}"
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": lambda: everything(root, named, None),
        "cached": lambda: everything(root, named, EmbeddingCache(place)),
    }
    if world > 1:
        parts["again"] = parts["cached"]
    for name, part in parts.items():
        np.savez(out / f"{name}-{world}-{rank}.npz", **part())
    try:
        everything(root / "damaged", named, None)
    except MmrepError as error:
        (out / f"error-{world}-{rank}").write_text(f"{type(error).__name__}: {error}")
    if world == 2:
        named = {name: shard_for_evaluation(model) for name, model in named.items()}
        np.savez(out / f"sharded-{world}-{rank}.npz", **everything(root, named, None))
    digests = [model_digest(EmbeddingCache(), model) for model in named.values()]
    (out / f"digests-{world}-{rank}").write_text(" ".join(digests))
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    """Forks, so that imports are paid once."""
    torch.set_num_threads(1)
    root, out = map(Path, sys.argv[1:])
    for world in (1, 2, 3):
        mp.start_processes(work, args=(world, root, out), nprocs=world, start_method="fork")


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
