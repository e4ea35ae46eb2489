"""Retrieval with a model: captions are matched to the images that own them."""

import pytest
import torch

from mmrep.config.evaluation import EvaluationConfig
from mmrep.data.tar import DataError
from mmrep.evaluation.context import Context
from mmrep.evaluation.sets import EvalSet
from mmrep.evaluation.sources.records import ShardRecords
from mmrep.evaluation.tasks.retrieval import flat_captions, retrieval


def test_ragged_captions_belong_to_their_images() -> None:
    texts, owner = flat_captions([["a cat", "two cats on a mat"], ["one dog"], ["a red car", "cars", "the old car"]])
    assert texts == ["a cat", "two cats on a mat", "one dog", "a red car", "cars", "the old car"]
    assert torch.equal(owner, torch.tensor([0, 0, 1, 2, 2, 2]))


class Uncaptioned(ShardRecords):
    """Two images, of which the second has no caption."""

    def key(self, position: int) -> str:
        """A name."""
        return f"picture {position}"

    def texts(self, position: int) -> list[str]:
        """None for the second."""
        return ["a cat"] if position == 0 else []

    def __len__(self) -> int:
        return 2


def test_an_image_without_caption_is_refused() -> None:
    evalset = EvalSet("holes", "retrieval", Uncaptioned([], "txt"), [], [])
    with pytest.raises(DataError, match="^evaluation set holes: image picture 1 has no caption"):
        retrieval(Context({}, evalset, EvaluationConfig()))
