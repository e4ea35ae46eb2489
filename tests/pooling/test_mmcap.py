"""Several class tokens and stages, the mean token, and its light form."""

import pytest
import torch

from mmrep.config.checks import ConfigError
from mmrep.pooling import PoolingHead, Tokens, build_pool
from mmrep.pooling.cap import StageFusion

WIDTH, HEADS = 24, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, **args: object) -> PoolingHead:
    """A head whose parameters are of a size at which every one matters."""
    head = build_pool(name, dim=WIDTH, num_heads=HEADS, **args)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    return head


def tokens(stages: int, count: int = 7) -> Tokens:
    earlier = tuple(draw(2, count, WIDTH, seed=10 + i) for i in range(stages))
    return Tokens(draw(2, 1, WIDTH, seed=2), draw(2, count, WIDTH), (1, count), stages=earlier)


@pytest.mark.parametrize("stages", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("distill", [True, False])
def test_every_ablation(stages: int, count: int, distill: bool) -> None:
    head = build("mmcap", tokens=count, stages=stages, distill=distill)
    pooled = head(tokens(stages))
    assert pooled.embedding.shape == (2, head.out_dim) == (2, count * WIDTH)
    assert [x.shape for x in pooled.auxiliary] == [(2, width) for width in head.auxiliary_dims]
    assert head.auxiliary_dims == ((WIDTH,) if distill else ())
    pooled.embedding.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert head.eval()(tokens(stages)).auxiliary == ()


@pytest.mark.parametrize("distill", [True, False])
def test_mmcap_without_stages_is_mcap(distill: bool) -> None:
    pair = build("mcap", distill=distill), build("mmcap", stages=0, distill=distill)
    pair[1].load_state_dict(pair[0].state_dict())
    for one, other in zip(pair[0](tokens(0)), pair[1](tokens(0)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_one_token_is_cap() -> None:
    many, one = build("mcap", tokens=1, distill=False), build("cap")
    one.load_state_dict(many.state_dict())
    torch.testing.assert_close(many(tokens(0)).embedding, one(tokens(0)).embedding)


def test_the_mean_token_changes_nothing_for_the_others() -> None:
    head = build("mmcap")
    training = head(tokens(3)).embedding
    torch.testing.assert_close(training, head.eval()(tokens(3)).embedding, rtol=1e-5, atol=1e-5)


def test_every_token_sees_the_others() -> None:
    head = build("mcap", distill=False)
    before = head(tokens(0)).embedding.unflatten(1, (4, WIDTH))
    with torch.no_grad():
        head.tokens[3] = draw(WIDTH, seed=5)
    after = head(tokens(0)).embedding.unflatten(1, (4, WIDTH))
    assert ((before - after).abs().amax((0, 2)) > 1e-4).all()


@pytest.mark.parametrize(("name", "stages"), [("mcap", 0), ("mmcap", 3), ("mmcap", 1)])
def test_light_is_the_trained_mean_token(name: str, stages: int) -> None:
    head = build(name, **({"stages": stages} if stages else {}))
    light = build_pool("mmcap_light", dim=WIDTH, num_heads=HEADS, stages=stages)
    light.load_state_dict(head.state_dict(), strict=True)
    x = tokens(stages)
    torch.testing.assert_close(light.eval()(x).embedding, head(x).auxiliary[0], rtol=1e-5, atol=1e-5)
    assert light.out_dim == WIDTH


def test_the_student_is_the_output_of_the_mean_of_the_input_tokens() -> None:
    head, x = build("mcap"), tokens(0)
    own = head.tokens
    expected = head.block((own[:1] + own[1:2] + own[2:3] + own[3:]) / 4, own, x.patches)[:, 0]
    torch.testing.assert_close(head(x).auxiliary[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mmcap", "mmcap_light"])
def test_order_of_patches_does_not_matter_if_stages_are_shuffled_alike(name: str) -> None:
    head, x = build(name), tokens(3)
    order = torch.tensor([3, 1, 0, 6, 5, 4, 2])
    alike = x._replace(patches=x.patches[:, order], stages=tuple(stage[:, order] for stage in x.stages))
    torch.testing.assert_close(head(x).embedding, head(alike).embedding, rtol=1e-4, atol=1e-4)
    apart = x._replace(patches=x.patches[:, order])
    assert not torch.allclose(head(x).embedding, head(apart).embedding, atol=1e-3)


def test_fusion_reduces_the_normed_stages() -> None:
    fusion = StageFusion((4, 6), 3)
    stages = draw(2, 5, 4), draw(2, 5, 6, seed=1) * 7 + 2
    normed = [(x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt() for x in stages]
    expected = torch.cat(normed, dim=-1) @ fusion.reduce.weight.T
    torch.testing.assert_close(fusion(stages), expected, rtol=1e-4, atol=1e-5)


def test_stages_of_different_grids_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stages of one grid, got \[5, 6\] patches"):
        StageFusion((4, 4), 3)((draw(2, 5, 4), draw(2, 6, 4)))


def test_missing_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the tokens of 3 earlier stages, got 0"):
        build("mmcap")(tokens(0))


@pytest.mark.parametrize("name", ["mcap", "mmcap", "mmcap_light"])
def test_errors_name_the_head(name: str) -> None:
    with pytest.raises(ConfigError, match=f"pool '{name}': num_heads"):
        build_pool(name, dim=WIDTH, num_heads=7)
    with pytest.raises(ConfigError, match="args.tokens: expected a value ≥ 1"):
        build_pool(name, dim=WIDTH, num_heads=HEADS, tokens=0)
