"""`accelerate launch train.py --config configs/X.yaml`: the same as `mmrep train --config configs/X.yaml`."""

import sys

from mmrep.cli import main

raise SystemExit(main(["train", *sys.argv[1:]]))
