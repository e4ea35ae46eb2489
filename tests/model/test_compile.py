"""torch.compile: the captured graphs give the same gradients. In a process of its own, without run-time type checks."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
from mmrep.batch import Batch
from mmrep.model.create import create_model

size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
image = {"trunk": "vit_base_patch16_clip_224", "args": size}
text = {"context_length": 16, "width": 16, "heads": 2, "layers": 1}
for pool in ("ggem", "map"):
    gradients = []
    for compiled in (False, True):
        model = create_model(pool=pool, embed_dim=16, image=image, text=text)
        if compiled:
            model.compile(backend="aot_eager")
        for captions in (["a cat", "a dog"], ["a cat that sleeps on a very warm stone", "a dog"]):
            tokens, lengths = model.tokenizer.batch(captions)
            n = torch.arange(2)
            pixels = torch.arange(2 * 3 * 16 * 16).remainder(255).to(torch.uint8).view(2, 3, 16, 16)
            output = model(Batch(pixels, tokens, lengths, n, n, n))
            (output.image * output.text.flip(0)).sum().backward()
        gradients.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)
print("same")
"""


@pytest.mark.long
def test_compiled_models_give_the_same_gradients() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "same", done.stderr
