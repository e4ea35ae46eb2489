"""Agreement of all processes on the failure that ends them, and on the step after which a signal stops them.

Neither costs a collective. Both are keys in the store of the process group (torch's TCPStore), which a thread of every
process polls. A process that fails writes its message and exit status there, and all processes end with that status. A
process that was killed can write nothing; processes on the same machine notice its end and write in its place.
"""

import atexit
import contextlib
import ctypes
import json
import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

LOG = logging.getLogger("mmrep")

_POLL, _GRACE, _PATIENCE = 0.25, 1.0, 5.0
"""Seconds: between two polls of the store; for a process to end by itself; to wait for other processes."""
_FAILURE, _STOP = "failure", "stop"


class Failure(NamedTuple):
    """The first failure of all processes.

    Attributes:
        rank: the process that failed and prints the message.
        status: exit status of all processes.
        text: the message, one line.
    """

    rank: int
    status: int
    text: str


class Peers:
    """The other processes of a run.

    Args:
        store: torch's store of the process group. This connection must not be blocked by another thread.
        rank: rank of this process.
        world: number of processes.
        local: process ids of the other ranks on this machine.
    """

    def __init__(self, store: Any, rank: int, world: int, local: dict[int, int]) -> None:
        self.rank, self.world = rank, world
        self.advice = ""
        self._store = store
        # The descriptor of a process becomes readable when the process ends, even before anyone has waited for it.
        self._ends = {os.pidfd_open(pid): other for other, pid in local.items()} if hasattr(os, "pidfd_open") else {}
        self._lock = threading.Lock()
        self._done, self._asked = 0, False
        self._stop_step: int | None = None
        self._stop_known, self._left = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="mmrep peers", daemon=True)
        self._thread.start()
        atexit.register(self.leave)

    def begin(self, step: int) -> None:
        """Start counting at a step. Every process calls this before any of them trains."""
        with self._lock:
            self._done = step

    def stops(self, done: int, signalled: str) -> str:
        """Return the signal that ends all processes after this step, or an empty text.

        A process that knows of a signal announces the earliest step after which it can stop, and waits at the end of
        that step until all have announced theirs. All stop after the latest of these steps.

        Args:
            done: number of steps done.
            signalled: name of the signal that this process received, if any.
        """
        with self._lock:
            self._done = done
            first = bool(signalled) and not self._asked
            self._asked |= first
            if not self._asked:
                return ""
        if first:
            self._store.compare_set(_STOP, "", signalled)
            self._store.set(f"{_STOP}/{self.rank}", str(done))
        while not self._stop_known.wait(_POLL):
            pass  # if another process fails meanwhile, the watching thread ends this one
        assert self._stop_step is not None, "known"
        return self._store.get(_STOP).decode() if done >= self._stop_step else ""

    def fail(self, text: str, status: int) -> NoReturn:
        """End this process with the first failure of all processes, which may be this one."""
        with contextlib.suppress(RuntimeError):
            self._end(self._publish(text, status))
        self._exit(Failure(self.rank, status, text))  # without the store, other failures are unknown

    def explain(self) -> None:
        """End this process if another one has failed or is gone. That may be why a collective raised an error here."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found = self._look()
            if found:
                self._end(found)
            time.sleep(_POLL / 2)

    def leave(self) -> None:
        """Stop watching, because this process is done. Rank 0, which may serve the store, waits for the others."""
        if self._left.is_set():
            return
        self._left.set()
        self._thread.join(_PATIENCE)
        with contextlib.suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "1")
            if self.rank == 0:
                self._await("left")
        for handle in self._ends:
            os.close(handle)
        atexit.unregister(self.leave)

    def _watch(self) -> None:
        while not self._left.wait(_POLL):
            found = self._look()
            if found:
                # The main thread may be about to end by itself, or may hang in a collective.
                time.sleep(_GRACE)
                self._end(found)
            try:
                self._agree_on_step()
            except RuntimeError:
                continue  # the next poll finds out why

    def _look(self) -> Failure | None:
        """Return the failure of all processes, or None."""
        try:
            if self._store.check([_FAILURE]):
                return Failure(*json.loads(self._store.get(_FAILURE)))
            for other in self._ended():
                if not self._store.check([f"left/{other}"]):
                    return self._publish(self._gone(other), 1)
        except RuntimeError:
            return None if self._left.is_set() else self._storeless()
        return None

    def _storeless(self) -> Failure:
        """Return the failure where the store is gone. The lowest rank that is left on a machine prints it."""
        ended = self._ended()
        speaks = all(other in ended for other in self._ends.values() if other < self.rank)
        # Under torchrun and accelerate, the launcher serves the store.
        by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        text = f"error: the launcher is gone: it was killed{self.advice}" if by_launcher else self._gone(0)
        return Failure(self.rank if speaks else -1, 1, text)

    def _gone(self, other: int) -> str:
        return f"error: rank {other} is gone: it was killed, or its machine ran out of memory{self.advice}"

    def _ended(self) -> list[int]:
        """Return the ranks on this machine whose process has ended."""
        poll = select.poll()
        for handle in self._ends:
            poll.register(handle, select.POLLIN)
        return [self._ends[handle] for handle, _ in poll.poll(0)]

    def _publish(self, text: str, status: int) -> Failure:
        """Record a failure unless there is one already. Return the one that was first."""
        mine = json.dumps(Failure(self.rank, status, text))
        return Failure(*json.loads(self._store.compare_set(_FAILURE, "", mine)))

    def _agree_on_step(self) -> None:
        """Announce when this process can stop, once a signal is known. Find the step once all have announced theirs."""
        if not self._asked and self._store.check([_STOP]):
            with self._lock:
                first, earliest = not self._asked, self._done + 1
                self._asked = True
            if first:
                self._store.set(f"{_STOP}/{self.rank}", str(earliest))
        keys = [f"{_STOP}/{rank}" for rank in range(self.world)]
        if self._asked and not self._stop_known.is_set() and self._store.check(keys):
            self._stop_step = max(int(value) for value in self._store.multi_get(keys))
            self._stop_known.set()

    def _await(self, key: str, of: set[int] | None = None) -> None:
        """Wait a few seconds until other processes, by default all, have set their `key` or have ended."""
        deadline = time.monotonic() + _PATIENCE
        waiting = (set(range(self.world)) if of is None else of) - {self.rank}
        while waiting and time.monotonic() < deadline:
            waiting -= {other for other in waiting if self._store.check([f"{key}/{other}"])} | set(self._ended())
            time.sleep(0.02)

    def _end(self, failure: Failure) -> NoReturn:
        """End this process with the status of all. The one that failed prints the reason, and ends when all know it.

        Otherwise the launcher would notice its end and kill the others before they know. Rank 0, which may serve the
        store, ends last.
        """
        self._ending.acquire()  # never released: the main thread and the watching thread may both arrive here
        self._left.set()
        with contextlib.suppress(RuntimeError):
            self._store.set(f"known/{self.rank}", "1")
            if failure.rank == self.rank:
                self._await("known")
                self._store.set(f"told/{self.rank}", "1")
            elif self.rank == 0:
                self._await("known")
                self._await("told", {failure.rank})
        self._exit(failure)

    def _exit(self, failure: Failure) -> NoReturn:
        if failure.rank == self.rank:
            sys.stderr.write(failure.text + "\n")
        for child in multiprocessing.active_children():
            child.kill()  # loader processes, which ignore SIGTERM
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Not sys.exit: another thread may hang in a collective, and the interpreter would wait for it.
        os._exit(failure.status)


_PEERS: list[Peers] = []


def join(store: Any, rank: int, world: int, local: dict[int, int]) -> None:
    """Start watching the other processes; see `Peers`."""
    _PEERS.append(Peers(store, rank, world, local))


def peers() -> Peers | None:
    """Return the other processes, or None where there are none or they have not met yet."""
    return _PEERS[-1] if _PEERS else None


def leave() -> None:
    """Stop watching the other processes. Every process calls this when all is done."""
    while _PEERS:
        _PEERS.pop().leave()


def end_with_launcher(launched: bool) -> None:
    """Make the kernel send SIGTERM to this process when the launcher that started it ends (Linux only).

    Args:
        launched: whether a launcher is known to have started this process. Otherwise the command line of the parent
            decides, since a process that a shell has started may outlive the shell.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
        launched |= any(name in command for name in (b"accelerate", b"torchrun", b"torch.distributed"))
    if not launched or not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # the launcher ended before the call
        signal.raise_signal(signal.SIGTERM)
