"""Learning rates and decay groups."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from mmrep.config.checks import ConfigError
from mmrep.config.training import OptimConfig
from mmrep.model.dual_encoder import DualEncoder
from mmrep.training.optim import build_optimizer, learning_rate, set_learning_rate


def rates(steps: int, **fields: object) -> list[float]:
    config = OptimConfig(lr=1.0, **fields)  # type: ignore[arg-type]
    return [learning_rate(step, steps, config) for step in range(steps)]


def test_warmup_is_linear_and_ends_at_the_peak() -> None:
    assert rates(8, warmup=4, schedule="constant") == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_cosine_goes_from_the_peak_to_the_last_rate() -> None:
    found = rates(104, warmup=4, min_lr=0.1)
    assert found[4] == 1
    assert found[54] == pytest.approx(0.55)
    assert found[-1] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
    assert all(a > b for a, b in pairwise(found[4:]))


def test_cooldown_is_constant_then_linear() -> None:
    assert rates(8, schedule="cooldown", cooldown=4) == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_cooldown_needs_a_length() -> None:
    with pytest.raises(ConfigError, match="optim.cooldown: expected the length of the fall, got 0"):
        OptimConfig(schedule="cooldown", cooldown=0)


def test_lengths_are_steps_or_shares_of_them() -> None:
    assert rates(8, warmup=0.5, schedule="constant") == rates(8, warmup=4, schedule="constant")
    assert rates(8, schedule="cooldown", cooldown=0.5) == rates(8, schedule="cooldown", cooldown=4)
    with pytest.raises(ConfigError, match=r"optim.warmup: expected a whole number of steps, or a share .*, got 1.5"):
        OptimConfig(warmup=1.5)


def test_only_matrices_decay(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("map", loss="sigmoid")
    optimizer = build_optimizer(model, model.no_weight_decay(), OptimConfig(weight_decay=0.3))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert decayed | spared == set(names.values())
    assert {"logit_scale", "logit_bias", "image.trunk.cls_token", "image.trunk.pos_embed"} <= spared
    assert {"image.norm.weight", "image.pool.attn_pool.latent", "text.tower.positional_embedding"} <= spared
    assert {"image.projection.weight", "text.tower.token_embedding.weight", "image.pool.attn_pool.kv.weight"} <= decayed


def test_learning_rates_scale_by_parameter(tiny: Callable[..., DualEncoder]) -> None:
    heads = ["cls", {"name": "ggem", "args": {"groups": 2, "lr_scale": 10.0}}]
    model = tiny({"name": "concat", "args": {"heads": heads}})
    optimizer = build_optimizer(model, model.no_weight_decay(), OptimConfig(), model.lr_scales())
    set_learning_rate(optimizer, 0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert found.pop("image.pool.heads.1.log_exponent") == 5.0
    assert set(found.values()) == {0.5}


def test_fused(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny()
    assert build_optimizer(model, set(), OptimConfig()).defaults["fused"]
