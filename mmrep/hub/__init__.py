"""To other libraries and to the Hugging Face Hub."""

import importlib
from typing import TYPE_CHECKING, Any

_PLACES = {"export": "mmrep.hub.export", "push": "mmrep.hub.push"}

if TYPE_CHECKING:
    from mmrep.hub.export import export
    from mmrep.hub.push import push

__all__ = ["export", "push"]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mmrep.hub' has no attribute {name!r}")
