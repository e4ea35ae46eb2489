"""The proof that a model computes what open_clip computes from the same config and weights."""

import copy
import hashlib
import json
import logging
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrep import __version__
from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.model.convert import NO_WEIGHTS, StateDict
from mmrep.model.dual_encoder import DualEncoder

LOG = logging.getLogger("mmrep")
TOLERANCE = 1e-5
"""Largest difference between embeddings of unit length that counts as rounding."""
TEXTS = ["a cat", "two dogs on a lawn"]


@torch.inference_mode()
def prove_equal_to_open_clip(
    model: DualEncoder, config: dict[str, Any], state: StateDict, preprocess: dict[str, Any], where: str
) -> None:
    """Build a model in open_clip, and compare the embeddings of two images and two texts and the pixels of a picture.

    Args:
        model: our model. A copy is compared unless it is on the CPU, in fp32 and in evaluation mode.
        config: open_clip's `model_cfg`.
        state: open_clip's weights.
        preprocess: open_clip's `preprocess_cfg`.
        where: start of the error's message.

    Raises:
        ConfigError: open_clip can't build the model, or computes something else.
    """
    theirs = _in_open_clip(config, state, where)
    ours = _copy_on_cpu(model)
    images = torch.randn((2, 3, *model.image.size), generator=torch.Generator().manual_seed(0))
    tokens = model.tokenizer(TEXTS)
    pairs = (
        ("image embeddings", ours.encode_image(images), theirs.encode_image(images, normalize=True)),
        ("text embeddings", ours.encode_text(tokens), theirs.encode_text(tokens, normalize=True)),
        ("preprocessed pixels", *_pixels(ours, preprocess)),
    )
    for what, mine, other in pairs:
        same = mine.shape == other.shape
        gap = float((mine - other).abs().max()) if same else math.inf
        if not gap <= TOLERANCE:
            raise ConfigError(f"{where}: the {what} differ from open_clip's by {gap:.1e}")


def _in_open_clip(config: dict[str, Any], state: StateDict, where: str) -> Any:
    from open_clip.model import CLIP, CustomTextCLIP

    fields = copy.deepcopy(config)
    fields.pop("custom_text", None)
    fields["vision_cfg"]["timm_model_pretrained"] = False
    kind = CustomTextCLIP if any(name.startswith("text.") for name in state) else CLIP
    try:
        with torch.random.fork_rng(devices=[]):
            theirs = kind(**fields).eval()
        shape = theirs.logit_scale.shape
        weights = {name: value for name, value in state.items() if name not in NO_WEIGHTS}
        for name in ("logit_scale", "logit_bias"):
            if name in weights:
                weights[name] = weights[name].reshape(shape)
        if getattr(theirs, "logit_bias", None) is None:
            weights.pop("logit_bias", None)  # embeddings do not depend on it
        theirs.load_state_dict(weights)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise ConfigError(f"{where}: open_clip can't build it: {' '.join(str(error).split())[:300]}") from error
    return theirs


def _pixels(model: DualEncoder, preprocess: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the pixels of a wide picture, preprocessed by our model and by open_clip's transform."""
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    merged = merge_preprocess_dict(PreprocessCfg(), preprocess) | {"size": model.image.size}
    ramp = torch.arange(90 * 30 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(30, 90, 3)
    picture = Image.fromarray(ramp.numpy())
    return model.preprocess(picture), image_transform_v2(PreprocessCfg(**merged), is_train=False)(picture)


def _copy_on_cpu(model: DualEncoder) -> DualEncoder:
    if model.device.type == "cpu" and not model.training and model.precision == "fp32":
        return model
    other = DualEncoder(model.config, sigmoid=model.logit_bias is not None)
    other.load_state_dict(model.state_dict())
    return other.eval()


def proof_file(files: Sequence[Path]) -> Path:
    """Return the place in the cache that exists once a model's config and weights are proven.

    Its name holds the digests of the files and the versions of the libraries that read them.
    """
    state = hashlib.sha256()
    packages = ("torch", "timm", "open_clip_torch")
    state.update(json.dumps([__version__, *(version(package) for package in packages)]).encode())
    for path in files:
        with path.open("rb") as file:
            state.update(hashlib.file_digest(file, "sha256").digest())
    return cache_root() / "proven" / state.hexdigest()


def remember_proof(place: Path) -> None:
    """Create a proof's file. If the cache can't be written to, the model is proven again next time."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    except OSError as error:
        LOG.warning("%s: %s; the proof is not remembered (MMREP_CACHE moves the cache)", place, error.strerror)
