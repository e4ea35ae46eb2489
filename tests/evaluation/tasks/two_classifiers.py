"""Run by test_finetune.py: two gloo processes fine-tune with a seed each; what each has then is saved."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.finetune import FinetuneConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.tasks.finetuning import fine_tune
from mmrep.model.create import create_model

IMAGE = {
    "trunk": "vit_base_patch16_clip_224",
    "args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2},
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def work(rank: int, folder: Path, out: Path) -> None:
    """What one process does."""
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    model = create_model(pool="ggem", embed_dim=16, image=IMAGE, text=TEXT).eval()
    model.image.register_buffer("rank", torch.tensor([rank]))
    config = EvaluationConfig(workers=0, finetune=FinetuneConfig(epochs=1, batch_size=4))
    train = Context({"tiny": model}, open_set(SetConfig(str(folder))), config).train
    config = replace(config, finetune=replace(config.finetune, seed=rank))
    classifier, curve = fine_tune(model, train.evalset.records, train.labels, range(8), 4, 1e-3, config)
    found = {"state": classifier.state_dict(), "curve": [tuple(epoch) for epoch in curve]}
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Forked, so that imports are paid once.
    mp.start_processes(work, args=tuple(map(Path, sys.argv[1:])), nprocs=2, start_method="fork")
