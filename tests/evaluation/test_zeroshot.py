"""Zero-shot classification of a model against the steps written out."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from mmrep.config.evaluation import SetConfig
from mmrep.evaluation.classification import zeroshot_metrics
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.zeroshot import embed_classes
from mmrep.model.dual_encoder import DualEncoder


def test_prompts_are_grouped_by_class(tiny: Callable[..., DualEncoder], colour_set: Path) -> None:
    model = tiny("avg", seed=3).eval()
    evalset = open_set(SetConfig(str(colour_set)))._replace(templates=["a {c} {c}", "{c}", "the photo of {c} things"])
    with torch.inference_mode():
        classes = []
        for name in evalset.classnames:
            tokens, _ = model.tokenizer.batch([f"a {name} {name}", name, f"the photo of {name} things"])
            classes.append(F.normalize(model.encode_text(tokens).mean(0), dim=-1))
    # Every class embedding is nearest to itself: the labels come back right, and only in this order.
    found = embed_classes(model, evalset, text_batch=5)
    torch.testing.assert_close(found, torch.stack(classes), rtol=0, atol=1e-5)
    right = zeroshot_metrics(torch.stack(classes), found, [0, 1, 2, 3])
    assert right.metrics["acc1"] == 1
    turned = zeroshot_metrics(torch.stack(classes[1:] + classes[:1]), found, [0, 1, 2, 3])
    assert turned.metrics["acc1"] == 0
