"""Models from folders and hub ids, and back into folders."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmrep import __version__
from mmrep.config.checks import ConfigError, require
from mmrep.config.model import ImageConfig, ModelConfig, TextConfig
from mmrep.model.convert import StateDict, load_open_clip_state_dict
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.presets import from_open_clip

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
OPEN_CLIP_CONFIG = "open_clip_config.json"
FORMAT = 1
HUB = "hf-hub:"


def config_from_dict(fields: dict[str, Any]) -> ModelConfig:
    """A ModelConfig from plain dicts, as `dataclasses.asdict` gives and JSON keeps them.

    Raises:
        ConfigError: an unknown field.
    """
    parts: dict[str, Any] = dict(fields)
    for key, kind in (("image", ImageConfig), ("text", TextConfig)):
        if isinstance(parts.get(key), dict):
            # JSON has no tuples.
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in parts[key].items()}
            parts[key] = _build(kind, values, f"model.{key}")
    return _build(ModelConfig, parts, "model")


def _build(kind: Any, fields: dict[str, Any], where: str) -> Any:
    valid = [f.name for f in dataclasses.fields(kind)]
    for key in fields:
        require(key in valid, f"{where}: unknown field {key!r} (valid: {', '.join(valid)})")
    return kind(**fields)


def save_model(model: DualEncoder, folder: str | Path, state_dict: StateDict | None = None) -> None:
    """Writes what `load` takes: config.json, model.safetensors, tokenizer/.

    Args:
        model: the model.
        folder: made if missing.
        state_dict: the model's weights, where they are already gathered from several processes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_model_config(model, folder)
    weights = model.state_dict() if state_dict is None else state_dict
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    model.tokenizer.save(folder / TOKENIZER)


def write_model_config(model: DualEncoder, folder: Path) -> None:
    """Writes config.json, from which the architecture is rebuilt."""
    fields = dataclasses.asdict(model.config) | {"weights": None, "allow_pickle": False}
    fields["image"]["pretrained"] = False
    content = {
        "format": FORMAT,
        "mmrep": __version__,
        "sigmoid": model.logit_bias is not None,
        "tokenizer": model.tokenizer.digest(),
        "model": fields,
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(
    source: str | Path, device: str | torch.device = "cpu", revision: str | None = None, allow_pickle: bool = False
) -> DualEncoder:
    """A model, in evaluation mode.

    Args:
        source: a run's `final`, a run, a checkpoint, an open_clip folder (open_clip_config.json + weights), or
            `hf-hub:user/name`.
        device: where to.
        revision: of a hub repository.
        allow_pickle: allow open_clip weights in a `.pt`/`.bin` file, read with weights_only=True.

    Raises:
        ConfigError: nothing there, an unreadable file, a newer format.
    """
    if str(source).startswith(HUB):
        from mmrep.model.hub_files import fetch_model

        folder = fetch_model(str(source).removeprefix(HUB), revision)
    else:
        folder = Path(source)
        if not (folder / CONFIG).exists() and (folder / "final" / CONFIG).exists():
            folder = folder / "final"
    if (folder / CONFIG).exists() and (folder / WEIGHTS).exists():
        model = _load_own(folder)
    elif (folder / OPEN_CLIP_CONFIG).exists():
        model = _load_open_clip(folder, allow_pickle)
    else:
        raise ConfigError(
            f"{source}: no model there: expected a folder with {CONFIG} and {WEIGHTS} (a run's final/), "
            "or with open_clip_config.json"
        )
    return model.to(device).eval()


def _load_own(folder: Path) -> DualEncoder:
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        version, fields = content["format"], content["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG}: not a model config of mmrep ({error})") from error
    require(version <= FORMAT, f"{folder / CONFIG}: written by a newer mmrep ({content.get('mmrep')}); upgrade mmrep")
    model = DualEncoder(config_from_dict(fields), sigmoid=content["sigmoid"])
    weights = read_weights(folder / WEIGHTS, allow_pickle=False)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{folder / WEIGHTS}: does not fit {folder / CONFIG}: {' '.join(str(error).split())}"
        ) from error
    return model


def _load_open_clip(folder: Path, allow_pickle: bool) -> DualEncoder:
    content = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
    named = content.get("model_cfg", content)
    config = complete_open_clip(named, folder.name, content.get("preprocess_cfg") or {})
    model = DualEncoder(config, sigmoid=named.get("init_logit_bias") is not None)
    load_open_clip_state_dict(model, read_weights(folder, allow_pickle))
    return model


def complete_open_clip(named: dict[str, Any], name: str, preprocess: dict[str, Any]) -> ModelConfig:
    """An open_clip config with its preprocessing as ours."""
    config = from_open_clip(named, name)
    mean, std = (tuple(preprocess.get(key) or getattr(config.image, key)) for key in ("mean", "std"))
    return dataclasses.replace(config, image=dataclasses.replace(config.image, mean=mean, std=std))


def read_weights(path: Path, allow_pickle: bool) -> StateDict:
    """A state dict from a safetensors file, from the one weights file of a folder, or from a pickle if allowed.

    Raises:
        ConfigError: no such file, damaged, or a pickle that was not allowed.
    """
    if path.is_dir():
        names = ("open_clip_model.safetensors", WEIGHTS, "open_clip_pytorch_model.bin")
        found = [path / name for name in names if (path / name).exists()]
        require(bool(found), f"{path}: no weights there (looked for {', '.join(names)})")
        path = found[0]
    require(path.is_file(), f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: not a readable safetensors file: {error}") from error
    require(
        allow_pickle,
        f"{path}: a pickle file can run code when read; convert it to safetensors, or pass --allow-pickle "
        "(model.allow_pickle: true), which reads it with weights_only=True",
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here, and each means the same to the user
        raise ConfigError(f"{path}: can't be read with weights_only=True: {str(error).splitlines()[0]}") from error
    return content.get("state_dict", content)
