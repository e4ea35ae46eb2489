"""Whether a model's tokenizer fits its text tower, and which texts are longer than the tower's context."""

import logging
from collections.abc import Callable, Sequence

from mmrep.config.checks import MmrepError
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.text_encoder import ClipTokenizer

LOG = logging.getLogger("mmrep")

_ANY_LENGTH = 1_000_000
_ENDS = 2
"""Tokens that mark start and end."""


def check_vocabulary(model: DualEncoder, name: str) -> None:
    """Finds a tokenizer that the text tower was not trained with.

    Raises:
        MmrepError: it gives ids that the tower does not have.
    """
    largest = int(model.tokenizer.batch([""])[0].max())  # the end of a text has the last id of CLIP's vocabulary
    size = model.text.tower.token_embedding.num_embeddings
    if largest >= size:
        raise MmrepError(
            f"model {name}: its text tower has a vocabulary of {size}, but CLIP's tokenizer, the only one supported, "
            f"gives ids up to {largest}: the tower was trained with another tokenizer"
        )


def warn_of_cut(texts: list[str], tokenizer: ClipTokenizer, name: str, models: Sequence[str]) -> int:
    """Counts distinct texts that are cut to the context, and logs one warning where there are any.

    Args:
        texts: doubles count once.
        tokenizer: of the models.
        name: of the set.
        models: names of the models whose context it is.
    """
    context = tokenizer.context_length
    # No token is shorter than a byte.
    unique = sorted(set(texts))
    long = [text for text in unique if len(text.encode()) > context - _ENDS]
    full = _with_length(long, tokenizer, lambda length: length == context)
    cut = _with_length(full, ClipTokenizer(_ANY_LENGTH), lambda length: length > context) if full else []
    if cut:
        LOG.warning(
            "evaluation set %s: %d of %d texts are longer than the %d tokens of the context of %s and are cut, such as "
            "%r", name, len(cut), len(unique), context, ", ".join(models), cut[0][:60],
        )  # fmt: skip
    return len(cut)


def _with_length(texts: list[str], tokenizer: ClipTokenizer, wanted: Callable[[int], bool]) -> list[str]:
    lengths = tokenizer.batch(texts)[1].tolist() if texts else []
    return [text for text, length in zip(texts, lengths, strict=True) if wanted(length)]
