"""Export of a model: to open_clip, proven to compute the same embeddings, or to the light form of a trained mmcap."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from mmrep.config.checks import one_of, require
from mmrep.model.convert import to_open_clip
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.light import light_from
from mmrep.model.load import OPEN_CLIP_CONFIG, save_model
from mmrep.model.proof import prove_equal_to_open_clip

FORMATS = ("open_clip", "mmcap_light")
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"


def export(model: DualEncoder, folder: str | Path, format: str = "open_clip") -> Path:
    """Write a model in another form, and return the folder.

    `open_clip` writes open_clip_config.json and open_clip_model.safetensors, which
    `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads. `mmcap_light` writes the mean token of a trained
    `mcap` or `mmcap` alone, for `mmrep.load`.

    Args:
        model: the model.
        folder: a new or an empty folder.
        format: one of `FORMATS`.

    Raises:
        ConfigError: an unknown format, a model that the format can't express (the message says why), or a folder that
            is not empty.
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
    image = model.config.image
    preprocess = {
        "size": list(model.image.size), "mean": image.mean, "std": image.std,
        "interpolation": image.interpolation, "resize_mode": image.resize_mode,
    }  # fmt: skip
    prove_equal_to_open_clip(model, config, state, preprocess, "open_clip can't express this model")
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    folder.mkdir(parents=True)
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(state, folder / OPEN_CLIP_WEIGHTS)
