"""Zero-shot classification: images against class names within templates."""

from jaxtyping import Float
from torch import Tensor

from mmrep.evaluation.embed import embed_texts
from mmrep.evaluation.metrics import Evaluation, class_embeddings, zeroshot_metrics
from mmrep.evaluation.sets import EvalSet
from mmrep.model.dual_encoder import DualEncoder


def zeroshot(
    model: DualEncoder, evalset: EvalSet, images: Float[Tensor, "images embed"], labels: list[int], text_batch: int
) -> Evaluation:
    """Zero-shot classification of embedded images.

    Args:
        model: reads the prompts.
        evalset: class names and templates.
        images: embeddings of unit length.
        labels: of the images.
        text_batch: prompts in one forward pass.
    """
    return zeroshot_metrics(images, embed_classes(model, evalset, text_batch), labels)


def embed_classes(model: DualEncoder, evalset: EvalSet, text_batch: int) -> Float[Tensor, "classes embed"]:
    """The classes of a set: each the mean over its templates, of unit length."""
    prompts = [template.replace("{c}", name) for name in evalset.classnames for template in evalset.templates]
    return class_embeddings(embed_texts(model, prompts, text_batch), len(evalset.classnames))
