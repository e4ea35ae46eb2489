"""`python -m mmrep VERB`, and `accelerate launch -m mmrep VERB` for several processes."""

from mmrep.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
