"""Two processes of one run, started from a server that has imported everything: imports take longer than these runs."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mmrep.cli", "mmrep.cli.evaluate", "mmrep.training.trainer", "mmrep.study.runner"])


class Started(NamedTuple):
    """The processes, and the files in which their standard error ends up."""

    processes: list[BaseProcess]
    errors: list[Path]

    def end(self, seconds: float = 120) -> list[int | None]:
        """Wait for the processes; return their exit statuses by rank."""
        for process in self.processes:
            process.join(seconds)
        found = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return found

    def said(self) -> str:
        """Return what all of them said, but for what libraries warn of."""
        return "".join(file.read_text() for file in self.errors)


def launcher_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a process of one machine without a GPU."""
    if world == 1:
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start(
    argv: Sequence[str],
    folder: Path,
    before: Callable[[int], None] | None = None,
    world: int = 2,
    more: Mapping[str, str] | None = None,
) -> Started:
    """Start a verb of the command line in several processes.

    Args:
        argv: the verb and its options.
        folder: for their standard error.
        before: called with the rank in each process, to break something there.
        world: number of processes.
        more: further environment variables, as a launcher sets them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = [folder / f"stderr_{rank}" for rank in range(world)]
    port = free_port()
    processes = [
        _SERVER.Process(
            target=_work,
            args=(list(argv), dict(more or {}) | launcher_environment(rank, world, port), errors[rank], before),
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return Started(list(processes), errors)


def _work(argv: list[str], environment: dict[str, str], errors: Path, before: Callable[[int], None] | None) -> None:
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ |= environment
    handle = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    import torch

    from mmrep.cli import main

    torch.set_num_threads(1)
    if before:
        before(int(environment.get("RANK", "0")))
    sys.exit(main(argv))
