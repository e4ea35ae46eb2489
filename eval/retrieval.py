"""`python eval/retrieval.py --model runs/x/final --data DIR`: image-text retrieval on one set."""

import sys

from mmrep.cli import main

raise SystemExit(main(["eval", "--task", "retrieval", *sys.argv[1:]]))
