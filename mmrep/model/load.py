"""Models from folders and from the Hub, and back into folders."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmrep import __version__
from mmrep.config.checks import ConfigError, quoted, require
from mmrep.config.model import ModelConfig
from mmrep.config.schema import read_fields, read_value
from mmrep.files import DamagedFile, read_json
from mmrep.model.convert import StateDict, load_open_clip_state_dict, place_weights
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.hub_files import is_model_config
from mmrep.model.presets import from_open_clip
from mmrep.model.proof import proof_file, prove_equal_to_open_clip, remember_proof

MODEL_CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
OPEN_CLIP_CONFIG = "open_clip_config.json"
PICKLES = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")
FORMAT = 1
HUB = "hf-hub:"
LARGEST_CONFIG = 2**20


class _Saved(TypedDict):
    """The content of a saved model's config.json."""

    format: int
    mmrep: NotRequired[str]
    sigmoid: bool
    tokenizer: NotRequired[str]
    model: dict[str, Any]


def config_from_dict(fields: Any, where: str = "model") -> ModelConfig:
    """Return a ModelConfig from plain dicts, as `dataclasses.asdict` makes them and JSON keeps them.

    Raises:
        ConfigError: an unknown field, or a value of the wrong type; the message begins with `where`.
    """
    return read_fields(ModelConfig, fields, where)


def save_model(model: DualEncoder, folder: str | Path, state_dict: StateDict | None = None) -> None:
    """Write a model as `load` reads it: config.json, model.safetensors, tokenizer/.

    Args:
        model: the model.
        folder: the folder; it is made if missing.
        state_dict: the model's weights, if they are already gathered from several processes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_model_config(model, folder)
    weights = model.state_dict() if state_dict is None else state_dict
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    model.tokenizer.save(folder / TOKENIZER)


def write_model_config(model: DualEncoder, folder: Path) -> None:
    """Write config.json, from which the architecture is rebuilt."""
    fields = dataclasses.asdict(model.config) | {"weights": None, "allow_pickle": False}
    fields["image"]["pretrained"] = False
    content = {
        "format": FORMAT,
        "mmrep": __version__,
        "sigmoid": model.logit_bias is not None,
        "tokenizer": model.tokenizer.digest(),
        "model": fields,
    }
    (folder / MODEL_CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(
    source: str | Path,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    allow_pickle: bool = False,
    verify: bool = True,
) -> DualEncoder:
    """Load a model, in evaluation mode.

    Args:
        source: a run, its `final/`, a checkpoint, an open_clip folder (open_clip_config.json and weights), or
            `hf-hub:user/name`. A folder with files of open_clip and of transformers loads as a model of open_clip.
        device: device of the model.
        revision: branch, tag or commit of a Hub repository.
        allow_pickle: read open_clip weights from a pickle (`.pt`, `.bin`), with weights_only=True.
        verify: also build a model of open_clip in open_clip, and compare embeddings and pixels before it is returned.
            Once a folder is proven, the digests of its files are remembered.

    Raises:
        ConfigError: no model, an unreadable file, a newer format, an unsupported field of a config, or embeddings that
            differ from open_clip's.
    """
    if str(source).startswith(HUB):
        from mmrep.model.hub_files import fetch_model

        folder = fetch_model(str(source).removeprefix(HUB), revision)
    else:
        folder = Path(source)
        if not is_model_config(folder / MODEL_CONFIG) and (folder / "final" / MODEL_CONFIG).exists():
            folder = folder / "final"
    if (folder / OPEN_CLIP_CONFIG).exists() and not is_model_config(folder / MODEL_CONFIG):
        model = _load_open_clip(folder, allow_pickle, verify)
    elif (folder / MODEL_CONFIG).exists() and (folder / WEIGHTS).exists():
        model = _load_own(folder)
    else:
        raise ConfigError(
            f"{source}: no model there: expected a folder with {MODEL_CONFIG} and {WEIGHTS} (a run's final/), "
            f"or with {OPEN_CLIP_CONFIG}"
        )
    return model.to(device).eval()


def _read_config(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path}: not a regular file")
    require(path.stat().st_size <= LARGEST_CONFIG, f"{path}: {path.stat().st_size:,} bytes, too large for a config")
    try:
        return read_json(path)
    except DamagedFile as error:
        raise ConfigError(str(error)) from error


def _load_own(folder: Path) -> DualEncoder:
    place = folder / MODEL_CONFIG
    found = _read_config(place)
    newer = isinstance(found.get("format"), int) and found["format"] > FORMAT
    require(not newer, f"{place}: written by a newer mmrep ({quoted(found.get('mmrep'))}); upgrade mmrep")
    content = read_value(_Saved, found, f"{place}:")
    config = config_from_dict(content["model"], f"{place}: model")
    outside = config.image.pretrained or config.weights is not None
    require(not outside, f"{place}: model.weights and model.image.pretrained: a saved model has no weights but its own")
    model = DualEncoder(config, sigmoid=content["sigmoid"])
    weights = read_weights(folder / WEIGHTS, allow_pickle=False)
    place_weights(model, weights, f"{folder / WEIGHTS}: does not fit {place}")
    return model


def _load_open_clip(folder: Path, allow_pickle: bool, verify: bool) -> DualEncoder:
    place = folder / OPEN_CLIP_CONFIG
    content = _read_config(place)
    named, preprocess = content.get("model_cfg", content), content.get("preprocess_cfg") or {}
    config = from_open_clip(named, str(place), folder.name, preprocess)
    weights = find_weights(folder)
    state = read_weights(weights, allow_pickle)
    model = DualEncoder(config, sigmoid="logit_bias" in state).eval()
    load_open_clip_state_dict(model, state)
    if verify:
        proof = proof_file([place, weights])
        if not proof.is_file():
            prove_equal_to_open_clip(
                model, named, state, preprocess, f"{folder}: not loaded, since mmrep reads it wrongly"
            )
            remember_proof(proof)
    return model


def find_weights(folder: Path) -> Path:
    """Return the file with the weights of an open_clip folder.

    Raises:
        ConfigError: there is none.
    """
    names = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", WEIGHTS, *PICKLES]
    if (folder / MODEL_CONFIG).exists():
        names.remove(WEIGHTS)  # next to a config.json it belongs to transformers
    found = [folder / name for name in names if (folder / name).exists()]
    require(bool(found), f"{folder}: no weights there (looked for {', '.join(names)})")
    return found[0]


def read_weights(path: Path, allow_pickle: bool) -> StateDict:
    """Read a state dict from a safetensors file, from a folder with one, or from a pickle if that is allowed.

    The prefixes of DDP (`module.`) and torch.compile (`_orig_mod.`) are taken off the names.

    Raises:
        ConfigError: no such file, a damaged file, a pickle that was not allowed, or a file without a state dict.
    """
    if path.is_dir():
        path = find_weights(path)
    require(path.is_file(), f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return _bare_names(load_file(path), path)
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
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors = isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())
    require(tensors, f"{path}: no state dict in it (names and tensors, at the top or under 'state_dict')")
    return _bare_names(content, path)


def _bare_names(state: StateDict, path: Path) -> StateDict:
    bare = {re.sub(r"^(?:module\.)+", "", name.replace("_orig_mod.", "")): value for name, value in state.items()}
    require(len(bare) == len(state), f"{path}: two names differ only in a prefix module. or _orig_mod.")
    return bare
