"""Export: a folder that open_clip itself loads, proven to give the same embeddings, or a trained mmcap's light form."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmrep.config.checks import ConfigError, one_of, require
from mmrep.model.convert import StateDict, to_open_clip
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.light import light_from
from mmrep.model.load import OPEN_CLIP_CONFIG, save_model

FORMATS = ("open_clip", "mmcap_light")
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
TOLERANCE = 1e-5


def export(model: DualEncoder, folder: str | Path, format: str = "open_clip") -> Path:
    """Writes a model in another form.

    `open_clip`: open_clip_config.json and open_clip_model.safetensors, which open_clip loads by
    `open_clip.create_model_and_transforms("local-dir:FOLDER")`.
    `mmcap_light`: the mean token of a trained `mcap` or `mmcap` alone, which `mmrep.load` takes.

    Args:
        model: any model; what the format can't express is refused.
        folder: must not exist, or be empty.
        format: one of `FORMATS`.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown format, a model that it can't express (named), a folder in use.
    """
    one_of("format", format, FORMATS)
    folder = Path(folder)
    require(not folder.exists() or (folder.is_dir() and not any(folder.iterdir())), f"{folder} exists and is not empty")
    aside = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if format == "mmcap_light":
        save_model(light_from(model), aside)
    else:
        _write_open_clip(model, aside)
    if folder.exists():
        folder.rmdir()
    aside.rename(folder)
    return folder


def _write_open_clip(model: DualEncoder, folder: Path) -> None:
    config, state = to_open_clip(model)
    _prove(model, config, state)
    image = model.config.image
    preprocess = {
        "mean": list(image.mean), "std": list(image.std), "size": list(model.image.size),
        "interpolation": "bicubic", "resize_mode": "shortest",
    }  # fmt: skip
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    folder.mkdir(parents=True)
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(state, folder / OPEN_CLIP_WEIGHTS)


@torch.inference_mode()
def _prove(model: DualEncoder, config: dict[str, Any], state: StateDict) -> None:
    """Builds the model in open_clip and compares embeddings.

    Raises:
        ConfigError: open_clip builds something else from this config, so that it can't express the model.
    """
    from open_clip.model import CLIP, CustomTextCLIP

    fields = dict(config)
    kind = CustomTextCLIP if fields.pop("custom_text", False) else CLIP
    theirs = kind(**fields).eval()
    try:
        theirs.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"open_clip can't express this model: {' '.join(str(error).split())}") from error
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((2, 3, *model.image.size), generator=generator)
    tokens = model.tokenizer(["a cat", "two dogs on a lawn"])
    ours = _copy_on_cpu(model)
    pairs = (
        ("image", ours.encode_image(images, normalize=True), theirs.encode_image(images, normalize=True)),
        ("text", ours.encode_text(tokens, normalize=True), theirs.encode_text(tokens, normalize=True)),
    )
    for what, mine, other in pairs:
        gap = float((mine - other).abs().max())
        if not gap <= TOLERANCE:
            raise ConfigError(f"open_clip can't express this model: its {what} embeddings differ by {gap:.1e}")


def _copy_on_cpu(model: DualEncoder) -> DualEncoder:
    """The model itself where it is on the CPU, in fp32 and in evaluation mode, else a copy that is."""
    if model.device.type == "cpu" and not model.training and model.precision == "fp32":
        return model
    copy = DualEncoder(model.config, sigmoid=model.logit_bias is not None)
    copy.load_state_dict(model.state_dict())
    return copy.eval()
