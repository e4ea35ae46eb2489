"""Models saved and loaded, from every kind of place, and what is said where there is none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import small_pool

import mmrep
from mmrep.config.checks import ConfigError
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import save_model
from mmrep.pooling import list_pools

Build = Callable[..., DualEncoder]
IMAGES = torch.arange(2 * 3 * 16 * 16, dtype=torch.int64).remainder(251).to(torch.uint8).view(2, 3, 16, 16)


@pytest.mark.parametrize("pool", list_pools())
def test_round_trip(tiny: Build, tmp_path: Path, pool: str) -> None:
    model = tiny(small_pool(pool), seed=4, loss="sigmoid").eval()
    save_model(model, tmp_path)
    again = mmrep.load(tmp_path)
    assert not again.training
    assert again.config.pooling.name == pool
    assert torch.equal(again.encode_image(IMAGES), model.encode_image(IMAGES))
    assert torch.equal(again.encode_text(again.tokenizer(["a cat"])), model.encode_text(model.tokenizer(["a cat"])))


def test_a_run_stands_for_its_final_model(tiny: Build, tmp_path: Path) -> None:
    model = tiny().eval()
    save_model(model, tmp_path / "final")
    assert torch.equal(mmrep.load(tmp_path).encode_image(IMAGES), model.encode_image(IMAGES))


def test_saved_tokenizer_is_the_one_transformers_reads(tiny: Build, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    model = tiny(text={"context_length": 77})
    save_model(model, tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    for text in ("a photo of a cat", "Two dogs & 3 birds, isn't it?"):
        ours = model.tokenizer.batch([text])
        assert theirs(text)["input_ids"] == ours[0][0, : ours[1][0]].tolist()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model there: expected a folder with config.json"):
        mmrep.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json: cut off or damaged, not JSON"),
        ('{"format": 99, "model": {}, "mmrep": "9.9"}', "newer mmrep .*9.9.*; upgrade"),
    ],
)
def test_unreadable_config(tiny: Build, tmp_path: Path, content: str, message: str) -> None:
    save_model(tiny(), tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        mmrep.load(tmp_path)


def test_truncated_weights(tiny: Build, tmp_path: Path) -> None:
    save_model(tiny(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        mmrep.load(tmp_path)


def test_weights_of_another_model(tiny: Build, tmp_path: Path) -> None:
    save_model(tiny("cls"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["pool"] = {"name": "ggem", "args": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="does not fit .*log_exponent"):
        mmrep.load(tmp_path)


def test_pickles_are_read_only_when_allowed(tiny: Build, tmp_path: Path) -> None:
    from mmrep.model.convert import to_open_clip

    model = tiny("cls").eval()
    config, state = to_open_clip(model)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ConfigError, match="--allow-pickle"):
        mmrep.load(tmp_path)
    loaded = mmrep.load(tmp_path, allow_pickle=True)
    torch.testing.assert_close(loaded.encode_image(IMAGES), model.encode_image(IMAGES))


def test_public_names() -> None:
    assert mmrep.list_pools()[0] == "cls"
    assert mmrep.build_pool("ggem", dim=768, groups=12, p=3.0).exponents().shape == (12,)
    with pytest.raises(AttributeError, match="no attribute 'pools'"):
        _ = mmrep.pools
    with pytest.raises(ConfigError, match="did you mean 'ViT-B-16'"):
        mmrep.create_model("ViT-B-166")
