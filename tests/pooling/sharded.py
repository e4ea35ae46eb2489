"""Run by torchrun from test_sharded.py: gradients of image towers under DDP and FSDP2, against the whole batch."""

import gc
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mmrep.model.create import create_model

IMAGE = {
    "trunk": "vit_base_patch16_clip_224",
    "args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
POOLS: list[dict[str, Any]] = [
    {"name": "ggem", "args": {"groups": 4}},
    {"name": "ggem", "args": {"groups": "channel", "negatives": "signed"}},
    {"name": "rgem", "args": {"negatives": "shift"}},
    {"name": "mcap", "args": {"tokens": 2}},
]


def gradients(pool: dict[str, Any], wrapping: str, images: torch.Tensor, bf16: bool) -> dict[str, torch.Tensor]:
    """Gradients of one step, whole, by parameter name."""
    tower = create_model(pool=pool, embed_dim=16, image=IMAGE, text=TEXT).image
    wrapped: torch.nn.Module = tower
    if wrapping == "ddp":
        wrapped = DistributedDataParallel(tower)
    elif wrapping == "fsdp2":
        for block in tower.trunk.blocks:
            fully_shard(block)
        fully_shard(tower)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        pooled = wrapped(images)
    loss = sum(embedding.float().square().mean() for embedding in (pooled.embedding, *pooled.auxiliary))
    loss.backward()
    found = {name: parameter.grad for name, parameter in tower.named_parameters() if parameter.grad is not None}
    return {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}


def main() -> None:
    """Compares, on every process; any difference ends it with a message."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    images = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    local = images[2 * rank : 2 * rank + 2]
    for pool in POOLS:
        for bf16 in (False, True):
            whole = gradients(pool, "none", images, bf16)
            assert len(whole) > 20, f"{pool}: gradients of few parameters: {list(whole)}"
            for wrapping in ("ddp", "fsdp2"):
                parts = gradients(pool, wrapping, local, bf16)
                assert parts.keys() == whole.keys(), f"{pool} {wrapping}: {parts.keys() ^ whole.keys()}"
                for name, grad in whole.items():
                    scale = float(grad.abs().max())
                    gap = float((parts[name] - grad).abs().max())
                    assert gap <= (0.03 if bf16 else 1e-4) * scale + 1e-9, (
                        f"{pool} {wrapping} {bf16} {name}: {gap} of {scale}"
                    )
    gc.collect()  # DDP's cycles hold the process group, and torch aborts now and then where it outlives the interpreter
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
