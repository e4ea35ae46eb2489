"""CLIP_benchmark as a server for eval_cpu.py: it runs its own program on each set, with the model built once.

Runs in the peer's environment. Reads a line of JSON for each evaluation, `{"arguments": [...]}`, and answers with one:
the seconds that CLIP_benchmark's `run` took and its metrics, or the error.
"""

import json
import sys
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from clip_benchmark import cli
from clip_benchmark.models import load_clip


def evaluate(arguments: list[str], model: Any, output: Path) -> dict[str, Any]:
    """Run one evaluation, from the parsed arguments to the file of results."""
    sys.argv = ["clip_benchmark", "eval", *arguments, "--output", str(output)]
    _, asked = cli.get_parser_args()
    asked.dataset, asked.model, asked.pretrained = asked.dataset[0], asked.model[0], asked.pretrained[0]
    cli.load_clip = lambda **_: model
    begin = time.perf_counter()
    with redirect_stderr(StringIO()):  # progress bars
        cli.run(asked)
    return {"seconds": time.perf_counter() - begin, "metrics": json.loads(output.read_text())["metrics"]}


def main() -> None:
    """Run `eval_peer.py MODEL_FOLDER OUTPUT`: print `ready`, then answer until the input ends."""
    warnings.filterwarnings("ignore")
    answers, (folder, output) = sys.stdout, sys.argv[1:]
    with redirect_stdout(StringIO()):
        model = load_clip("open_clip", f"local-dir:{folder}", pretrained="", cache_dir=None, device="cpu")
        print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), file=answers, flush=True)
        for line in sys.stdin:
            try:
                answer = evaluate(json.loads(line)["arguments"], model, Path(output))
            except Exception as error:  # whatever it is, the benchmark reports it
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
