"""The place of all caches."""

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the folder of all caches: `$MMREP_CACHE`, or ~/.cache/mmrep."""
    return Path(os.environ.get("MMREP_CACHE") or "~/.cache/mmrep").expanduser()
