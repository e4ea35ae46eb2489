"""`mmrep explore`."""

import importlib.util
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

from mmrep.cli.models import find_device, is_quiet
from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.config.checks import ConfigError, require, within


@dataclass(frozen=True, kw_only=True)
class Options:
    """Search the images of a study with every pooling, side by side, on a page in the browser. It stays on this
    machine unless --share is given.

    Attributes:
        study: Folder of a study, as `mmrep compare` and `mmrep screen` write it. The first seed's models are loaded.
        set: Name of the evaluation set to search. By default the study's first with captions or one class an image.
        port: Port of the page.
        share: Also make a public address for the page, through a server of Gradio.
        device: Where the models run. By default the GPU, if there is one.
        plugins: Modules that register pooling heads of your own.
    """

    study: str
    set: str | None = None
    port: int = 7860
    share: bool = False
    device: str | None = None
    plugins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        within("--port", self.port, 1, 65535)


def run(options: Options, _: list[str]) -> None:
    """Load the models, embed the set, and serve the page until Ctrl-C.

    Raises:
        ConfigError: wrong use, or Gradio is not installed.
        DataError: an image that can't be read.
    """
    require(importlib.util.find_spec("gradio") is not None, "the page needs Gradio: pip install 'mmrep[demo]'")
    _require_free_port(options.port)
    folder = Path(options.study)
    from mmrep.cli.explore_page import serve
    from mmrep.study.explore import open_study

    explorer = open_study(folder, options.set, find_device(options.device), is_quiet())
    page, address = serve(explorer, folder.resolve().name, options.port, options.share)
    say(f"search with {', '.join(explorer.models)} at {address} (Ctrl-C ends)")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("ended")
    finally:
        page.close(verbose=False)


def _require_free_port(port: int) -> None:
    """Raise ConfigError if another program listens there, before the models are loaded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port {port}: can't be used: {error.strerror}: choose another") from error


VERB = Verb(
    Options,
    run,
    positional="study",
    examples=("mmrep explore studies/quickstart", "mmrep explore studies/quickstart --set captions --port 8000"),
)
