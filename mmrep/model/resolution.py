"""A trained model for images of another size."""

import copy
import dataclasses

from mmrep.config.checks import ConfigError, require
from mmrep.model.dual_encoder import DualEncoder


def at_resolution(model: DualEncoder, size: int | tuple[int, int]) -> DualEncoder:
    """Return the model for images of another size, with its position embedding resampled. The text tower is shared.

    Everything that reads the model's image size (`preprocess`, evaluation, saving) then sees the new one. Rotary
    position embeddings are computed anew.

    Args:
        model: the model, which is left as it is.
        size: rows and columns in pixels, or one number for both.

    Raises:
        ConfigError: the size is not a multiple of the patch size, or the trunk can't be resized.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    encoder = model.image
    patch = tuple(encoder.trunk.patch_embed.patch_size)
    require(
        rows > 0 and columns > 0 and rows % patch[0] == 0 and columns % patch[1] == 0,
        f"images of {(rows, columns)}: expected multiples of the patch size {patch}",
    )
    if not hasattr(encoder.trunk, "set_input_size"):
        raise ConfigError(
            f"images of {(rows, columns)}: a {type(encoder.trunk).__name__} can't be resized; expected a trunk with "
            "set_input_size, as timm's VisionTransformer and Eva have"
        )
    shared = (model.text, model.tokenizer)
    other = copy.deepcopy(model, {id(part): part for part in shared})
    other.image.trunk.set_input_size(img_size=(rows, columns))
    other.image.size = (rows, columns)
    other.image.grid = tuple(other.image.trunk.patch_embed.grid_size)
    image = dataclasses.replace(model.config.image, args={**model.config.image.args, "img_size": (rows, columns)})
    other.config = dataclasses.replace(model.config, image=image)
    return other
