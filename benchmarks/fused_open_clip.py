"""open_clip's trainer with fused AdamW, for comparisons at equal optimiser implementation.

open_clip 3.3 builds `torch.optim.AdamW` without a way to pass `fused`, so this launcher sets the default before the
trainer starts; nothing else differs. Run inside the peer's environment: `python fused_open_clip.py ARGUMENTS`.
"""

import sys
from typing import Any

import torch
from open_clip_train.main import main


class AdamW(torch.optim.AdamW):
    """Return torch's AdamW, fused."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **{"fused": True, **options})


if __name__ == "__main__":
    torch.optim.AdamW = AdamW  # type: ignore[misc]  # open_clip looks it up there when it builds the optimiser
    main(sys.argv[1:])
