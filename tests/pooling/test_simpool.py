"""SimPool: timm's as far as that goes, one image at a time, γ, heads, bf16 logits."""

from functools import partial

import pytest
import torch

from mmrep.config.checks import ConfigError
from mmrep.pooling import PoolingHead, Tokens, build_pool


def tokens(dtype: torch.dtype = torch.float32) -> Tokens:
    x = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Tokens(x[:, :0], x, (3, 3))


def drawn(**args: object) -> PoolingHead:
    """With weights that give uneven attention."""
    torch.manual_seed(0)
    head = build_pool("simpool", 24, **args)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


@pytest.mark.parametrize("heads", [1, 4])
def test_without_gamma_is_timms(heads: int) -> None:
    from timm.layers.other_pool import SimPool1d

    head = drawn(heads=heads, gamma=None)
    peer = SimPool1d(24, num_heads=heads, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))
    peer.load_state_dict({
        "norm.weight": head.norm.weight, "norm.bias": head.norm.bias, "q.weight": head.query.weight,
        "k.weight": head.key.weight,
    })  # fmt: skip
    torch.testing.assert_close(head(tokens()).embedding, peer(tokens().patches))


def test_an_image_is_pooled_alike_whatever_is_beside_it() -> None:
    head, x = drawn(), tokens()
    alone = torch.cat([head(Tokens(x.prefix[i : i + 1], x.patches[i : i + 1], x.grid)).embedding for i in range(3)])
    torch.testing.assert_close(head(x).embedding, alone)


def test_gamma_one_is_the_weighted_mean_less_the_minimum() -> None:
    x = tokens()
    plain, shifted = drawn(gamma=None), drawn(gamma=1.0)
    low = plain.norm(x.patches).amin((1, 2))[:, None]
    torch.testing.assert_close(shifted(x).embedding, plain(x).embedding - low, atol=1e-5, rtol=1e-5)


def test_equal_weights_make_it_a_power_mean_of_shifted_values() -> None:
    head = drawn(gamma=2.0)
    torch.nn.init.zeros_(head.key.weight)
    values = head.norm(tokens().patches)
    values = values - values.amin((1, 2), keepdim=True) + 1e-6
    torch.testing.assert_close(head(tokens()).embedding, values.square().mean(1).sqrt())


def test_large_logits_stay_exact_and_finite_under_autocast() -> None:
    head = drawn()
    with torch.no_grad():
        head.query.weight.mul_(100)
    x = tokens()
    exact = head(x).embedding
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(tokens(torch.bfloat16)).embedding
    assert exact.isfinite().all() and rough.isfinite().all()
    assert rough.dtype == torch.bfloat16


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="'simpool': heads must divide the trunk's width 24, got 5"):
        build_pool("simpool", 24, heads=5)


def test_the_trunks_number_of_heads_is_not_taken() -> None:
    assert build_pool("simpool", dim=24, num_heads=4).heads == 1
