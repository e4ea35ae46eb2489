"""What ten heads cost on one frozen trunk, as a multiple of one head (`mmrep screen`).

    OMP_NUM_THREADS=1 python benchmarks/screen_cpu.py [--out benchmarks/results/screen_cpu_cpu-2core_1thread.json]

Trunks and heads have random weights, which does not change their speed. The steps with one head and with ten are taken
in turns in one process, and CPU seconds are counted, so that neighbours on the machine matter little.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from mmrep.batch import Batch
from mmrep.config.loss import LossConfig
from mmrep.config.model import ImageConfig, ModelConfig, TextConfig
from mmrep.config.pooling import PoolConfig
from mmrep.config.training import OptimConfig
from mmrep.loss import total_loss
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.presets import complete
from mmrep.model.shared import with_heads
from mmrep.training.optim import build_optimizer

POOLS = ("cls", "avg", "max", "gem", "ggem", "lse", "map", "simpool", "cap", "mcap")
TRUNKS = {
    "ViT-Ti/16 at 224 px (12 blocks, width 192, 196 patches)": ("vit_tiny_patch16_224", {}),
    "4 blocks, width 128, 64 patches": (
        "vit_base_patch16_clip_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4},
    ),
}
BATCH, ROUNDS = 64, 5


def models_on(trunk: str, args: dict[str, int], pools: tuple[str, ...]) -> list[DualEncoder]:
    """Return a model for each head on one trunk."""
    text = TextConfig(context_length=16, width=128, heads=4, layers=2)

    def build(pool: PoolConfig, seed: int) -> DualEncoder:
        config = ModelConfig(pool=pool.name, embed_dim=128, image=ImageConfig(trunk=trunk, args=args), text=text)
        return DualEncoder(complete(config), seed)

    return with_heads(build(PoolConfig("avg"), 0), [PoolConfig(name) for name in pools], range(len(pools)), build)


def step(models: list[DualEncoder], optimizers: list[torch.optim.Optimizer]) -> float:
    """Train all heads on one batch of noise. Return the CPU seconds."""
    tokens, lengths = models[0].tokenizer.batch(["a photo of a cat"] * BATCH)
    images = torch.randint(0, 256, (BATCH, 3, *models[0].image.size), dtype=torch.uint8)
    ids = torch.arange(BATCH)
    batch, begin = Batch(images, tokens, lengths, ids, ids, torch.zeros_like(ids)), time.process_time()
    for model, optimizer in zip(models, optimizers, strict=True):
        out = model(batch)
        total_loss(out.image, out.text, out.logit_scale, out.auxiliary, LossConfig(), None, ids, "negative").backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - begin


def main() -> None:
    """Measure both trunks, and print and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    out, found = parser.parse_args().out, {}
    for name, (trunk, args) in TRUNKS.items():
        arms = {}
        for pools in (("avg",), POOLS):
            models = [model.train() for model in models_on(trunk, args, pools)]
            arms[len(pools)] = models, [build_optimizer(m, m.no_weight_decay(), OptimConfig()) for m in models]
        for arm in arms.values():
            step(*arm)
        rounds = [{count: step(*arm) for count, arm in arms.items()} for _ in range(ROUNDS)]
        ratios = sorted(each[len(POOLS)] / each[1] for each in rounds)
        found[name] = {"ratio": statistics.median(ratios), "rounds": ratios, "one_head_s": rounds[-1][1]}
        print(f"{name}: ten heads cost {found[name]['ratio']:.2f} times one ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    if out:
        content = {"batch": BATCH, "threads": torch.get_num_threads(), "torch": torch.__version__, "trunks": found}
        out.write_text(json.dumps(content | {"pools": POOLS}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
