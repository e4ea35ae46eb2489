"""`python eval/zeroshot.py --model runs/x/final --data DIR`: zero-shot classification on one set."""

import sys

from mmrep.cli import main

raise SystemExit(main(["eval", "--task", "zeroshot", *sys.argv[1:]]))
