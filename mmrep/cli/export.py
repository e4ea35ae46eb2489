"""`mmrep export`."""

from dataclasses import dataclass
from typing import Literal

from mmrep.cli.models import OneModel
from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say


@dataclass(frozen=True, kw_only=True)
class Options(OneModel):
    """Write a model in the form of another library.

    Attributes:
        output_dir: A new folder, or an empty one.
        format: The form: `open_clip`, or `mmcap_light`, the mean token of a trained mcap or mmcap for mmrep itself.
    """

    output_dir: str
    format: Literal["open_clip", "mmcap_light"] = "open_clip"


def run(options: Options, _: list[str]) -> None:
    """Load the model and export it."""
    from mmrep.hub.formats import export

    export(options.load(), options.output_dir, options.format)
    say(f"written: {options.output_dir}")


VERB = Verb(
    Options,
    run,
    positional="model",
    examples=("mmrep export --model runs/x --output_dir exported",),
)
