"""`mmrep push`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mmrep.cli.models import OneModel
from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say


@dataclass(frozen=True, kw_only=True)
class Options(OneModel):
    """Upload a finished run to the Hugging Face Hub, in one commit.

    Attributes:
        repo_id: Name of the repository, as user/name. It is made if it does not exist.
        private: Make a new repository private.
        license: License of the weights, as the Hub names it (apache-2.0, mit, cc-by-4.0, ...).
        open_clip: Upload the files that open_clip itself loads, too.
        dry_run: List the files and show the card without using the network.
    """

    repo_id: str
    private: bool = False
    license: str | None = None
    open_clip: bool = False
    dry_run: bool = False


def run(options: Options, _: list[str]) -> None:
    """Upload the model, or show what would be uploaded."""
    from mmrep.hub.push import push

    with tempfile.TemporaryDirectory() as folder:
        extra = None
        if options.open_clip:
            from mmrep.hub.formats import export

            extra = export(options.load(), Path(folder) / "open_clip")
        result = push(
            options.model, options.repo_id, options.private, options.dry_run, license=options.license, extra=extra
        )
    lines = [f"{size:>14,}  {name}" for name, size in result.files.items()]
    if options.dry_run:
        say("\n".join([result.card, *lines, "", f"dry run: nothing was uploaded to {result.url}"]))
    else:
        lines += [f"       removed  {name}" for name in result.removed]
        say("\n".join([*lines, "", f"{result.url} at commit {result.commit}"]))


VERB = Verb(
    Options,
    run,
    positional="model",
    examples=("mmrep push --model runs/x --repo_id user/name --dry_run",),
)
