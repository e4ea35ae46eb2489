"""Export of a model: to open_clip, proven to compute the same embeddings, or to the light form of a trained mmcap."""

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from mmrep.config.checks import ConfigError, one_of, require
from mmrep.files import whole_folder
from mmrep.model.convert import to_open_clip
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import OPEN_CLIP_CONFIG, save_model
from mmrep.model.proof import prove_equal_to_open_clip
from mmrep.pooling.cap import LightCap, MultiCap

FORMATS = ("open_clip", "mmcap_light")
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
_STUDENT, _TEACHER = "image.auxiliary_projections.0.", "image.projection."


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
    with whole_folder(folder, SafetensorError) as aside:
        if format == "mmcap_light":
            save_model(light_from(model), aside)
        else:
            _write_open_clip(model, aside)
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
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(state, folder / OPEN_CLIP_WEIGHTS)


def light_from(model: DualEncoder) -> DualEncoder:
    """Return a model with the head `mmcap_light`: its image embedding is what distillation taught the mean token.

    It is on the device of `model`, in its mode and precision, with copies of the weights.

    Args:
        model: a model with the head `mcap` or `mmcap` and its `distill` on.

    Raises:
        ConfigError: the model has no mean token.
    """
    config, head = model.config, model.image.pool
    pool = config.pooling
    if not isinstance(head, MultiCap) or isinstance(head, LightCap) or not head.auxiliary_dims:
        grafted = f", grafted onto {config.base.name!r}" if config.base else ""
        raise ConfigError(
            f"mmcap_light: expected a model with pool 'mcap' or 'mmcap' and its distill: true, which trains the mean "
            f"token, got {pool.name!r} with {pool.args or 'no args'}{grafted}"
        )
    given = pool.checked_args()
    args = {"ffn_ratio": given.ffn_ratio, "tokens": given.tokens, "stages": head.num_stages}
    if given.num_heads is not None:
        args["num_heads"] = given.num_heads
    light_config = dataclasses.replace(
        config,
        pool={"name": "mmcap_light", "args": args},
        pool_init="fresh",
        pool_base=None,
        weights=None,
        image=dataclasses.replace(config.image, pretrained=False),
    )
    light = DualEncoder(light_config, sigmoid=model.logit_bias is not None)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith(_TEACHER)}
    light.load_state_dict({name.replace(_STUDENT, _TEACHER): value for name, value in state.items()})
    light.precision = model.precision
    return light.to(model.device).train(model.training)
