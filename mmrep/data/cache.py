"""Where caches lie."""

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder of all caches: `$MMREP_CACHE`, or ~/.cache/mmrep."""
    return Path(os.environ.get("MMREP_CACHE") or "~/.cache/mmrep").expanduser()
