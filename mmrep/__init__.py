"""mmrep: which pooling should turn the patch tokens of a ViT into an image embedding, for my data and my budget?

Shapes in signatures: batch = images or pairs of one process, global = of all processes, prefix = class and register
tokens,
patches = patch tokens (N = rows × columns of the grid), width = token width D, out = width of a head's output D',
embed = width of the shared embedding, length = text length in tokens; rows, columns = of an image in pixels.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PLACES = {
    "build_pool": "mmrep.pooling",
    "list_pools": "mmrep.pooling",
    "register_pool": "mmrep.config.pools",
    "create_model": "mmrep.model.create",
    "load": "mmrep.model.load",
}

if TYPE_CHECKING:
    from mmrep.config.pools import register_pool
    from mmrep.model.create import create_model
    from mmrep.model.load import load
    from mmrep.pooling import build_pool, list_pools

__all__ = ["__version__", "build_pool", "create_model", "list_pools", "load", "register_pool"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mmrep' has no attribute {name!r}")
