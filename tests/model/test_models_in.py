"""Models that come in from open_clip and from strangers: honoured field by field, proven, or refused in one line."""

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from mutations import ABSENT, VALUES, mutated, places
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import _registry as timm_registry

import mmrep
from mmrep.config.checks import ConfigError, MmrepError
from mmrep.evaluation.embedding.embed import centre_of
from mmrep.hub import export
from mmrep.model import load as loading
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import save_model
from mmrep.pixels import Fit

Build = Callable[..., DualEncoder]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
NATIVE: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
TIMM: dict[str, Any] = {
    "embed_dim": 16,
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160},
    "text_cfg": TEXT,
}


def with_vision(base: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**base, "vision_cfg": {**base["vision_cfg"], **fields}}


MAP = with_vision(TIMM, timm_model_name="vit_tiny_patch16_224", timm_pool="map", timm_proj=None, image_size=224)


def theirs(cfg: dict[str, Any]) -> torch.nn.Module:
    fields = copy.deepcopy(cfg)
    torch.manual_seed(3)
    kind = open_clip.CustomTextCLIP if fields.pop("custom_text", False) else open_clip.CLIP
    return kind(**fields).eval()


def folder_of(place: Path, cfg: dict[str, Any], preprocess: dict[str, Any] | None = None, **files: Any) -> Path:
    """An open_clip folder; `state` replaces the weights."""
    place.mkdir(parents=True)
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess or {}}))
    state = files.get("state") or theirs(cfg).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, place / "open_clip_model.safetensors")
    return place


def check_equal(mine: DualEncoder, other: torch.nn.Module) -> None:
    images = torch.randn(2, 3, *mine.image.size, generator=torch.Generator().manual_seed(1))
    tokens = mine.tokenizer(["a dog", "three birds over a lake"])
    with torch.no_grad():
        torch.testing.assert_close(mine.encode_image(images), other.encode_image(images, normalize=True))
        torch.testing.assert_close(mine.encode_text(tokens), other.encode_text(tokens, normalize=True))


HONOURED: dict[str, dict[str, Any]] = {
    "timm's own pooling, class token": with_vision(TIMM, timm_pool=""),
    "timm's own pooling, average": with_vision(TIMM, timm_model_name="test_vit2", timm_pool=""),
    "map and timm's classifier": MAP,
    "average and timm's classifier": with_vision(TIMM, timm_pool="avg", timm_proj=None),
    "a bias and stochastic depth": with_vision(TIMM, timm_proj_bias=True, timm_drop_path=0.1),
    "quick_gelu": {**NATIVE, "quick_gelu": True},
    "layer scale, ln after pool": with_vision(NATIVE, ls_init_value=0.1, final_ln_after_pool=True, pool_type="avg"),
    "a sigmoid's bias": {**NATIVE, "init_logit_bias": -10.0, "init_logit_scale": 2.3},
}


@pytest.mark.parametrize("case", HONOURED)
def test_fields_are_honoured(tmp_path: Path, case: str) -> None:
    cfg = HONOURED[case]
    check_equal(mmrep.load(folder_of(tmp_path / "m", cfg)), theirs(cfg))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another pool": (with_vision(TIMM, timm_pool="abs_attn"), "timm_pool 'abs_attn'"),
    "no pool": (with_vision(TIMM, timm_pool="", timm_proj="none"), "pools by 'nothing'"),
    "an MLP after it": (with_vision(TIMM, timm_proj="mlp"), "timm_proj 'mlp' is not supported"),
    "dropout": (with_vision(TIMM, timm_drop=0.5), "timm_drop 0.5 is not supported"),
    "another size than timm's": (with_vision(TIMM, image_size=96), "image_size 96: test_vit takes"),
    "attention over all tokens": (
        with_vision(TIMM, timm_model_name="test_vit3", timm_pool=""),
        "its class or register",
    ),
    "no norm before the blocks": (with_vision(NATIVE, no_ln_pre=True), "no_ln_pre True is not supported"),
    "attention pooling": (with_vision(NATIVE, attentional_pool=True), "attentional_pool True is not supported"),
    "other norms": (with_vision(NATIVE, norm_kwargs={"eps": 1e-3}), "norm_kwargs .* is not supported"),
    "other blocks": (with_vision(NATIVE, qk_norm=True), "qk_norm True is not supported"),
    "no pooling": (with_vision(NATIVE, pool_type="none"), "pool_type 'none' is not supported"),
    "a fixed position embedding": (with_vision(NATIVE, pos_embed_type="sin_cos_2d"), "pos_embed_type"),
    "a ResNet": (with_vision(NATIVE, layers=[1, 1, 1, 1]), "a ResNet"),
    "a field of the future": (with_vision(NATIVE, attention_sinks=4), "unknown field 'attention_sinks'"),
    "a part of the future": ({**NATIVE, "audio_cfg": {"layers": 2}}, "audio_cfg not supported"),
    "transformers' tokenizer": ({**NATIVE, "text_cfg": {**TEXT, "hf_tokenizer_name": "t5"}}, "'t5': only open_clip's"),
    "a smaller vocabulary": ({**NATIVE, "text_cfg": {**TEXT, "vocab_size": 32000}}, "vocab_size: expected at least"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(tmp_path: Path, case: str) -> None:
    cfg, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        mmrep.load(folder_of(tmp_path / "m", cfg, state={"none": torch.zeros(1)}))
    assert "open_clip_config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (31, 32), (7, 300)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pictures_are_fitted_as_open_clip_fits_them(
    size: tuple[int, int], shape: tuple[int, int], mode: Any, interpolation: Any
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    cfg = PreprocessCfg(size, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode, interpolation=interpolation)
    if mode == "shortest" and size[0] != size[1] and interpolation == "bilinear":
        cfg.interpolation = "bicubic"  # open_clip drops the interpolation there
        interpolation = "bicubic"
    expected = (255 * image_transform_v2(cfg, is_train=False)(Image.fromarray(picture))).round()
    found = torch.from_numpy(Fit(*size, mode, interpolation).pixels(picture)).permute(2, 0, 1)
    # Of thin pictures only the part that is kept is resized, which may round the other way.
    assert (found - expected).abs().max() <= (1 if 300 in shape and mode == "shortest" else 0)


def test_preprocessing_is_part_of_the_model(tiny: Build, tmp_path: Path) -> None:
    about = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    model = mmrep.load(folder_of(tmp_path / "theirs", NATIVE, about))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 90, 3), dtype=np.uint8))
    expected = image_transform_v2(PreprocessCfg(32, **about), is_train=False)(picture)
    save_model(model, tmp_path / "ours")
    export(model, tmp_path / "again")
    own = {"image": {"args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}}}
    started = tiny("avg", weights=str(tmp_path / "theirs"), **own, text=TEXT)
    for each in (model, mmrep.load(tmp_path / "ours"), mmrep.load(tmp_path / "again"), started):
        torch.testing.assert_close(each.preprocess(picture), expected)
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
        view = (centre_of(each)(pixels, 0)[None].float() - each.image.mean) / each.image.std
        torch.testing.assert_close(view[0], expected, rtol=0, atol=1e-5)
    content = json.loads((tmp_path / "again" / "open_clip_config.json").read_text())["preprocess_cfg"]
    assert {key: content[key] for key in about} == about
    own["image"]["resize_mode"] = "shortest"
    with pytest.raises(ConfigError, match=r"model.image.resize_mode: shortest, but .* was trained with squash; leave"):
        tiny("avg", weights=str(tmp_path / "theirs"), **own, text=TEXT)


def test_what_differs_from_open_clip_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    folder = folder_of(tmp_path / "m", NATIVE)
    right = loading.load_open_clip_state_dict

    def wrong(model: DualEncoder, *args: Any) -> None:
        right(model, *args)
        with torch.no_grad():
            model.image.trunk.blocks[0].attn.qkv.weight.mul_(1.1)

    monkeypatch.setattr(loading, "load_open_clip_state_dict", wrong)
    with pytest.raises(ConfigError, match=r"not loaded.*the image embeddings differ from open_clip's by"):
        mmrep.load(folder)
    mmrep.load(folder, verify=False)


def test_a_proof_is_remembered_as_long_as_the_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    folder = folder_of(tmp_path / "m", NATIVE)
    proofs: list[str] = []
    monkeypatch.setattr(loading, "prove_equal_to_open_clip", lambda *args: proofs.append(args[-1]))
    mmrep.load(folder)
    mmrep.load(folder)
    assert len(proofs) == 1
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text() + " ")
    mmrep.load(folder)
    assert len(proofs) == 2


def test_prefixes_are_taken_off(tmp_path: Path) -> None:
    other = theirs(NATIVE)
    for prefix in ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."):
        state = {prefix + name: value for name, value in other.state_dict().items()}
        check_equal(mmrep.load(folder_of(tmp_path / prefix.strip("."), NATIVE, state=state)), other)


@pytest.mark.parametrize("name", ["visual.ln_post.bias", "visual.proj", "text_projection", "logit_scale"])
def test_no_tensor_is_forgiven(tmp_path: Path, name: str) -> None:
    state = theirs(NATIVE).state_dict()
    less = {key: value for key, value in state.items() if key != name}
    with pytest.raises(ConfigError, match=r"open_clip weights: nothing for '.*' \(1 missing\)"):
        mmrep.load(folder_of(tmp_path / "less", NATIVE, state=less))
    prefix = name.rpartition(".")[0]
    with pytest.raises(ConfigError, match="'.*extra' has no place in this model"):
        mmrep.load(folder_of(tmp_path / "more", NATIVE, state={**state, f"{prefix}.extra".strip("."): torch.zeros(2)}))


def test_a_head_without_its_weights_is_refused(tmp_path: Path) -> None:
    state = {name: value for name, value in theirs(MAP).state_dict().items() if "attn_pool.latent" not in name}
    with pytest.raises(ConfigError, match="nothing for 'image.pool.attn_pool.latent'"):
        mmrep.load(folder_of(tmp_path / "m", MAP, state=state))


def test_a_folder_of_two_libraries_loads_as_open_clips(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", NATIVE)
    (folder / "config.json").write_text(json.dumps({"architectures": ["CLIPModel"], "model_type": "clip"}))
    save_file({"text_model.x": torch.zeros(2)}, folder / "model.safetensors")
    check_equal(mmrep.load(folder), theirs(NATIVE))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="no weights there .looked for open_clip_model.safetensors"):
        mmrep.load(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"pool": "cls", "image": {"args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2,
         "num_heads": 2, "init_values": 0.1}}},
        {"pool": {"name": "map", "args": {"mlp_ratio": 4.0}}, "image": {"trunk": "vit_tiny_patch16_224", "args": {}}},
    ],
)  # fmt: skip
def test_what_is_exported_loads_again(tiny: Build, tmp_path: Path, fields: dict[str, Any]) -> None:
    model = tiny(**fields).eval()
    with torch.no_grad():
        for parameter in model.image.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    again = mmrep.load(export(model, tmp_path / "out"))
    images = torch.randn(2, 3, *model.image.size)
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(images), model.encode_image(images))


@pytest.mark.parametrize("name", ["test_vit2", "test_vit"])
def test_a_pretrained_trunk_has_the_norm_of_its_checkpoint(
    tiny: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """test_vit2 averages, so that timm calls its norm fc_norm."""
    trained = timm.create_model(name, num_classes=1000).eval()
    norm = trained.fc_norm if isinstance(trained.norm, torch.nn.Identity) else trained.norm
    torch.nn.init.normal_(norm.weight)
    save_file(trained.state_dict(), tmp_path / "trunk.safetensors")
    cfg = timm.get_pretrained_cfg(name)
    cfg = dataclasses.replace(cfg, file=str(tmp_path / "trunk.safetensors"), mean=(0.1, 0.2, 0.3))
    monkeypatch.setitem(timm_registry._model_pretrained_cfgs, name, cfg)
    model = tiny("avg", image={"trunk": name, "args": {}, "pretrained": True}).eval()
    assert torch.equal(model.image.norm.weight, norm.weight)
    assert model.preprocess.mean == (0.1, 0.2, 0.3)
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = trained.forward_features(images)
        expected = norm(expected) if name == "test_vit2" else expected
        torch.testing.assert_close(model.image.tokens(images).patches, expected[:, trained.num_prefix_tokens :])


def test_a_strangers_folder_opens_no_other_file(tiny: Build, tmp_path: Path) -> None:
    save_model(tiny("avg"), tmp_path)
    place, wanted = tmp_path / "config.json", tmp_path / "evil.bin"
    wanted.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    base = json.loads(place.read_text())
    for key, value in {
        "checkpoint_path": str(wanted), "pretrained_cfg_overlay": {"file": str(wanted)}, "cache_dir": "x",
        "pretrained_cfg": "hf-hub:a/b", "model_args": {}, "features_only": True, "scriptable": True,
    }.items():  # fmt: skip
        content = copy.deepcopy(base)
        content["model"]["image"]["args"][key] = value
        place.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=f"model.image.args.{key}: not an argument that a trunk may be given"):
            mmrep.load(tmp_path)
    for part, value in (("weights", str(wanted)), ("image", {**base["model"]["image"], "pretrained": True})):
        place.write_text(json.dumps({**base, "model": {**base["model"], part: value}}))
        with pytest.raises(ConfigError, match="a saved model has no weights but its own"):
            mmrep.load(tmp_path)


@pytest.mark.parametrize("kind", ["own", "native", "timm"])
def test_malformed_configs_are_one_line(tiny: Build, tmp_path: Path, unchecked: None, kind: str) -> None:
    """A seeded sample of all places and values; whatever loads has to be a model, whatever does not one short line."""
    if kind == "own":
        folder = tmp_path / "own"
        save_model(tiny("ggem"), folder)
    else:
        about = {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "resize_mode": "shortest",
            "size": 32 if kind == "native" else 160,
        }
        folder = folder_of(tmp_path / "theirs", {"native": NATIVE, "timm": TIMM}[kind], about)
    place = folder / ("config.json" if kind == "own" else "open_clip_config.json")
    base = json.loads(place.read_text())
    mutations = [(path, value) for path in places(base) for value in [*VALUES, ABSENT]]
    for path, value in random.Random(kind).sample(mutations, 40 if kind == "timm" else 120):
        place.write_text(json.dumps(mutated(base, path, value)))
        try:
            mmrep.load(folder, verify=False)
        except MmrepError as error:
            assert "\n" not in str(error) and len(str(error)) < 600, (path, value)


def test_weights_that_are_no_state_dict(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", NATIVE)
    state = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {**state, "epoch": 3}}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ConfigError, match="no state dict in it"):
        mmrep.load(folder, allow_pickle=True)


def test_what_would_not_load_again_is_not_exported(tiny: Build, tmp_path: Path) -> None:
    model = tiny({"name": "map", "args": {"mlp_ratio": 2.0}}, image={"trunk": "vit_tiny_patch16_224", "args": {}})
    with pytest.raises(ConfigError, match="open_clip can't express this model: open_clip can't build it: .*attn_pool"):
        export(model.eval(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_openai_weights_need_quick_gelu(tiny: Build, tmp_path: Path) -> None:
    """Their files tell no activation, but have three sizes that others lack."""
    state = theirs({**NATIVE, "quick_gelu": True}).state_dict()
    sizes = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    save_file({**{name: value.contiguous() for name, value in state.items()}, **sizes}, tmp_path / "w.safetensors")
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    own: dict[str, Any] = {"weights": str(tmp_path / "w.safetensors"), "image": {"args": size}, "text": TEXT}
    with pytest.raises(ConfigError, match="these are OpenAI's, trained with QuickGELU: choose a model.name"):
        tiny("cls", **own)
    own["image"] = {"args": {**size, "act_layer": "quick_gelu"}}
    own["text"] = {**TEXT, "args": {"quick_gelu": True}}
    check_equal(tiny("cls", **own).eval(), theirs({**NATIVE, "quick_gelu": True}))
