"""The parameter counts that MMCAP's ResNet-50 table prints, from our own modules."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from mmrep.pooling import build_pool
from mmrep.pooling.cap import StageFusion

CLASSES = 1000


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("resnet50", num_classes=0)


def head(name: str, width: int, fused: tuple[int, ...] = (), **args: object) -> nn.Module:
    """A head, the fusion of the backbone's stages, and a classifier for each token that has one."""
    ours = nn.ModuleList([build_pool(name, dim=width, num_heads=16, **args)])
    if fused:
        ours.append(StageFusion(fused, width))
    classifiers = ours[0].out_dim // width + len(ours[0].auxiliary_dims)
    ours.extend(nn.Linear(width, CLASSES) for _ in range(classifiers))
    return ours


STAGES = (256, 512, 1024, 2048)
TABLE: dict[str, tuple[float, Callable[[], nn.Module]]] = {
    "cap": (59.1, lambda: head("cap", 2048)),
    "mcap, 4 tokens": (65.3, lambda: head("mcap", 2048, tokens=4, distill=False)),
    "mmcap, 4 tokens, 7×7": (73.3, lambda: head("mcap", 2048, STAGES, tokens=4, distill=False)),
    "mmcap, 4 tokens, 14×14": (40.0, lambda: head("mcap", 1024, STAGES, tokens=4, distill=False)),
    "mmcap, 8 tokens": (44.1, lambda: head("mcap", 1024, STAGES, tokens=8, distill=False)),
    "mmcap, 8 tokens, distilled": (45.1, lambda: head("mcap", 1024, STAGES, tokens=8, distill=True)),
    "mmcap_light": (36.9, lambda: head("mmcap_light", 1024, STAGES, tokens=8, stages=0)),
}


@pytest.mark.parametrize("row", TABLE)
def test_parameters_of_the_table(backbone: nn.Module, row: str) -> None:
    printed, build = TABLE[row]
    with torch.device("meta"):
        modules = backbone, build()
    counted = sum(p.numel() for module in modules for p in module.parameters()) / 1e6
    assert counted == pytest.approx(printed, abs=0.2)


def test_the_stages_are_the_backbones(backbone: nn.Module) -> None:
    assert tuple(info["num_chs"] for info in backbone.feature_info[1:]) == STAGES
