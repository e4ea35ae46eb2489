"""Export to other libraries, model cards, and upload to the Hugging Face Hub."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrep.hub.formats import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    if name == "export":
        # The card and a dry run of an upload need no torch.
        from mmrep.hub.formats import export

        return export
    raise AttributeError(f"module 'mmrep.hub' has no attribute {name!r}")
