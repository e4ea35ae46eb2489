"""Models that start from trained weights, with the same head, a fresh one, or one swapped in without a change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_pool

import mmrep
from mmrep.config.checks import ConfigError
from mmrep.hub import export
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import save_model
from mmrep.pooling import list_pools

Build = Callable[..., DualEncoder]
IMAGES = torch.arange(4 * 3 * 16 * 16, dtype=torch.int64).remainder(251).to(torch.uint8).view(4, 3, 16, 16)
BASES: dict[str, Any] = {
    "cls": "cls",
    "avg": "avg",
    "ggem": {"name": "ggem", "args": {"groups": 4}},
    "mcap": {"name": "mcap", "args": {"tokens": 2}},
}
NEW = [small_pool(name) for name in list_pools()] + [
    {"name": "gem", "args": {"negatives": "shift"}},
    {"name": "ggem", "args": {"negatives": "signed"}},
    {"name": "concat", "args": {"heads": ["ggem", "avg"]}},
    {"name": "concat", "args": {"heads": ["avg", "mcap"]}},
]


@pytest.fixture(scope="module")
def trained(tiny: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models with heads and biases away from their initial values."""
    places = {}
    for name, pool in BASES.items():
        model = tiny(pool, seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        places[name] = tmp_path_factory.mktemp(name)
        save_model(model, places[name])
    return places


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("pool", NEW, ids=lambda pool: "-".join([pool["name"], *map(str, pool["args"].values())]))
def test_a_preserving_head_changes_nothing_at_first(
    tiny: Build, trained: dict[str, Path], base: str, pool: dict[str, Any]
) -> None:
    before = mmrep.load(trained[base])
    model = tiny(pool, weights=str(trained[base]), pool_init="preserve").eval()
    torch.testing.assert_close(model.encode_image(IMAGES), before.encode_image(IMAGES), rtol=0, atol=1e-6)
    texts = model.tokenizer(["a cat", "two dogs"])
    torch.testing.assert_close(model.encode_text(texts), before.encode_text(texts), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", NEW, ids=lambda pool: "-".join([pool["name"], *map(str, pool["args"].values())]))
def test_a_preserving_head_learns_and_is_saved(
    tiny: Build, trained: dict[str, Path], tmp_path: Path, pool: dict[str, Any]
) -> None:
    model = tiny(pool, weights=str(trained["avg"]), pool_init="preserve")
    optimizer = torch.optim.SGD(model.image.parameters(), lr=0.1)
    start = {name: value.clone() for name, value in model.image.pool.named_parameters()}
    for _ in range(3):
        pooled = model.image(IMAGES)
        loss = sum(embedding[:, 0].mean() for embedding in (pooled.embedding, *pooled.auxiliary))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Two steps at most for the gate or the zero columns to let the gradient through.
    still = [name for name, value in model.image.pool.named_parameters() if torch.equal(value, start[name])]
    assert still == []
    save_model(model.eval(), tmp_path)
    assert torch.equal(mmrep.load(tmp_path).encode_image(IMAGES), model.encode_image(IMAGES))


def test_same_head_is_taken_over(tiny: Build, trained: dict[str, Path]) -> None:
    for pool_init in ("fresh", "preserve"):
        model = tiny(BASES["ggem"], weights=str(trained["ggem"]), pool_init=pool_init)
        assert torch.equal(model.image.pool.log_exponent, mmrep.load(trained["ggem"]).image.pool.log_exponent)


def test_fresh_head_on_a_trained_trunk(tiny: Build, trained: dict[str, Path]) -> None:
    model, before = tiny("map", weights=str(trained["avg"])), mmrep.load(trained["avg"])
    assert torch.equal(model.image.trunk.blocks[0].mlp.fc1.weight, before.image.trunk.blocks[0].mlp.fc1.weight)
    assert torch.equal(model.image.projection.weight, before.image.projection.weight)
    wide = tiny({"name": "concat", "args": {"heads": ["cls", "max"]}}, weights=str(trained["avg"]))
    assert torch.equal(wide.image.norm.weight, before.image.norm.weight)


def test_open_clip_folders_are_preserved_too(tiny: Build, tmp_path: Path) -> None:
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    before = tiny("avg", seed=3, image={"args": args, "norm": "after"}).eval()
    export(before, tmp_path / "theirs")
    new = {"weights": str(tmp_path / "theirs"), "pool_init": "preserve"}
    model = tiny("cap", image={"args": args, "norm": "after"}, **new).eval()
    torch.testing.assert_close(model.encode_image(IMAGES), before.encode_image(IMAGES), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"embeddings differ by .* model.image.norm is before, was after"):
        tiny("cap", image={"args": args}, **new)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool_init": "preserve"}, "preserve needs model.weights"),
        ({"pool_init": "keep"}, "fresh, preserve"),
        ({"pool_base": "avg"}, "under model.pool_init: preserve only"),
        ({"text": {"width": 64}}, "has shape .*, the model's is"),
        (
            {"image": {"args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}}},
            "nothing for 'image.trunk.blocks.2",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    tiny: Build, trained: dict[str, Path], fields: dict[str, Any], message: str
) -> None:
    if fields.get("pool_init") is None and "pool_base" not in fields:
        fields = {**fields, "weights": str(trained["avg"])}
    with pytest.raises(ConfigError, match=message) as caught:
        tiny("avg", **fields)
    assert "\n" not in str(caught.value)


def test_heads_of_other_widths_need_a_projection(tiny: Build, tmp_path: Path) -> None:
    before = tiny("avg", seed=1, embed_dim=32, image={"projection": False})
    save_model(before, tmp_path)
    new = {"embed_dim": 32, "image": {"projection": False}, "weights": str(tmp_path), "pool_init": "preserve"}
    gated = tiny("cap", **new).eval()
    torch.testing.assert_close(gated.encode_image(IMAGES), before.eval().encode_image(IMAGES), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"'concat' has another width .* set model.image.projection"):
        tiny({"name": "concat", "args": {"heads": ["avg", "max"]}}, **new)


def test_a_swapped_head_is_no_base(tiny: Build, trained: dict[str, Path], tmp_path: Path) -> None:
    save_model(tiny("cap", weights=str(trained["avg"]), pool_init="preserve"), tmp_path)
    with pytest.raises(ConfigError, match="swapped in itself"):
        tiny("map", weights=str(tmp_path), pool_init="preserve")


def test_a_swapped_head_is_not_exported_as_what_it_is_named(
    tiny: Build, trained: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny("avg", weights=str(trained["cls"]), pool_init="preserve")
    with pytest.raises(ConfigError, match="swapped onto"):
        export(model, tmp_path / "out")


def test_weights_without_a_config_need_the_name_of_their_head(tiny: Build, tmp_path: Path) -> None:
    before = tiny("avg", seed=3, image={"norm": "after"}).eval()
    export(before, tmp_path / "theirs")
    file = {"weights": str(tmp_path / "theirs" / "open_clip_model.safetensors"), "image": {"norm": "after"}}
    with pytest.raises(ConfigError, match=r"does not say what head it was trained with; give model.pool_base"):
        tiny("max", **file, pool_init="preserve")
    model = tiny("max", **file, pool_init="preserve", pool_base="avg").eval()
    torch.testing.assert_close(model.encode_image(IMAGES), before.encode_image(IMAGES), rtol=0, atol=1e-6)


@pytest.mark.parametrize("field", [{"text": {"heads": 1}}, {"image": {"args": {"img_size": 16, "patch_size": 4,
    "embed_dim": 32, "depth": 2, "num_heads": 4}}}, {"image": {"mean": (0.0, 0.0, 0.0)}}])  # fmt: skip
def test_what_changes_the_function_but_no_shape_is_noticed(
    tiny: Build, trained: dict[str, Path], field: dict[str, Any]
) -> None:
    for pool_init in ("fresh", "preserve"):
        with pytest.raises(ConfigError, match=r"(before any training: model\.(text|image)\..* was|was trained with)"):
            tiny("max", weights=str(trained["avg"]), pool_init=pool_init, **field)


def test_a_wrong_base_is_refused(tiny: Build, trained: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="model.pool_base is 'max', but .* was trained with 'avg'"):
        tiny("map", weights=str(trained["avg"]), pool_init="preserve", pool_base="max")


def test_a_head_is_the_same_however_it_is_spelled(tiny: Build, tmp_path: Path) -> None:
    before = tiny("ggem", seed=1)
    before.image.pool.set_exponents(6.5)
    save_model(before, tmp_path)
    for args in ({"groups": 2}, {"lr_scale": 5.0}, {"learn": False}):
        for pool_init in ("fresh", "preserve"):
            model = tiny({"name": "ggem", "args": args}, weights=str(tmp_path), pool_init=pool_init)
            assert torch.equal(model.image.pool.log_exponent, before.image.pool.log_exponent)


def test_the_projection_of_the_mean_token_goes_with_its_head(tiny: Build, trained: dict[str, Path]) -> None:
    heads = [{"name": "mcap", "args": {"tokens": 1}}, BASES["mcap"]]
    model = tiny({"name": "concat", "args": {"heads": heads}}, weights=str(trained["mcap"]), pool_init="preserve")
    old = mmrep.load(trained["mcap"]).image.auxiliary_projections[0].weight
    assert [torch.equal(each.weight, old) for each in model.image.auxiliary_projections] == [False, True]
    assert len(model.image(IMAGES).auxiliary) == 2


def test_a_swapped_head_leaves_a_fresh_one_alone(tiny: Build, trained: dict[str, Path], tmp_path: Path) -> None:
    save_model(tiny("cap", weights=str(trained["avg"]), pool_init="preserve"), tmp_path)
    model = tiny("cap", weights=str(tmp_path))
    assert torch.equal(model.image.trunk.pos_embed, mmrep.load(tmp_path).image.trunk.pos_embed)
