"""Zero-shot classification: images against class names within templates."""

from jaxtyping import Float
from torch import Tensor

from mmrep.evaluation.classification import class_embeddings, zeroshot_metrics
from mmrep.evaluation.context import Context
from mmrep.evaluation.embed import embed_texts
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet
from mmrep.model.dual_encoder import DualEncoder


def zeroshot(context: Context) -> list[Evaluation]:
    """Zero-shot classification of a set under every model."""
    found = []
    for model, images in zip(context.models.values(), context.images, strict=True):
        classes = class_embeddings(
            context.encode_texts(model, prompts(context.evalset)), len(context.evalset.classnames)
        )
        found.append(zeroshot_metrics(images, classes, context.labels))
    return found


def embed_classes(model: DualEncoder, evalset: EvalSet, text_batch: int) -> Float[Tensor, "classes embed"]:
    """The classes of a set: each the mean over its templates, of unit length."""
    return class_embeddings(embed_texts(model, prompts(evalset), text_batch), len(evalset.classnames))


def prompts(evalset: EvalSet) -> list[str]:
    """The class names within the templates: class after class, all templates of one together."""
    return [template.replace("{c}", name) for name in evalset.classnames for template in evalset.templates]
