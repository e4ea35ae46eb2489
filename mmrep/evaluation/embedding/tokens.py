"""Texts that are longer than a text tower's context."""

import logging
from collections.abc import Callable, Sequence

from mmrep.model.text_encoder import ClipTokenizer

LOG = logging.getLogger("mmrep")

_ANY_LENGTH = 1_000_000
_ENDS = 2
"""Tokens that mark start and end."""


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
