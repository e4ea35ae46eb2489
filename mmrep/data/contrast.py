"""A training set needs pairs that differ: of one class alone, every other pair is masked and nothing is learned."""

import numpy as np

from mmrep.config.checks import ConfigError
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError


def check_contrast(sources: Sources) -> None:
    """Look at samples until two of them belong to different groups.

    Of most sets two samples are read; only of one that is refused, all.

    Raises:
        ConfigError: all pairs that could be drawn belong to one group.
    """
    found: set[int] = set()
    example = ""
    for number in range(len(sources)):
        sample = sources.sample(number)
        try:
            found |= sample.captioner.groups_of(sample.shard, sample.row)
        except DataError:
            continue  # the loader says so, or replaces it
        if len(found) > 1:
            return
        example = example or sample.captioner.draw(sample.shard, sample.row, np.zeros(2, np.uint64)).text
    if found:
        raise ConfigError(
            f"data.train: all {len(sources)} pairs are of one class or caption ({example[:80]!r}): no pair has a "
            "negative, and nothing would be learned; add other classes, or choose other captions (data.train caption)"
        )
