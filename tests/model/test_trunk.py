"""Which blocks a head's stages are read after, and on which trunks they can be."""

import pytest
import torch
from conftest import TINY_MODEL

from mmrep.config.checks import ConfigError
from mmrep.config.model import ImageConfig
from mmrep.config.pooling import PoolConfig
from mmrep.model.image_encoder import ImageEncoder
from mmrep.model.trunk import build_trunk, stage_blocks, walk

WALKED_WHOLE = "beit_base_patch16_224"
REFUSAL = "several stages are not supported on Beit; set the head's stages to 0, or choose a VisionTransformer or Eva"


@pytest.mark.parametrize(
    ("depth", "stages", "blocks"), [(12, 3, (2, 5, 8)), (4, 3, (0, 1, 2)), (12, 0, ()), (12, 1, (5,))]
)
def test_stages_are_evenly_spaced(depth: int, stages: int, blocks: tuple[int, ...]) -> None:
    assert stage_blocks(depth, stages) == blocks


def test_more_stages_than_earlier_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected at most 3 on a trunk of 4 blocks, got 4"):
        stage_blocks(4, 4)


def encoder(name: str, stages: int) -> ImageEncoder:
    config = ImageConfig(trunk=WALKED_WHOLE, args=TINY_MODEL["image"]["args"])
    return ImageEncoder(config, PoolConfig(name, {"stages": stages}), embed_dim=16, seed=0)


@pytest.mark.parametrize("name", ["mmcap", "mmcap_light"])
def test_stages_of_a_trunk_walked_whole_are_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSAL):
        encoder(name, stages=1)
    pooled = encoder(name, stages=0).eval()(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert pooled.embedding.shape == (2, 16)


def test_walking_such_a_trunk_refuses_stages_too() -> None:
    trunk, _ = build_trunk(WALKED_WHOLE, TINY_MODEL["image"]["args"], pretrained=False, seed=0)
    with pytest.raises(ConfigError, match=REFUSAL):
        walk(trunk, torch.zeros(1, 3, 16, 16), blocks=(0,))
