"""What all processes of a run agree on: the failure that ends them, and the step after which a signal stops them.

Neither costs a collective. Both are keys of the store that the processes met at (torch's TCPStore), which a thread of
every process polls: whoever fails writes its one line and exit status there, and all end with that status. A process
that was killed can write nothing; others on its machine see it end and write in its place.
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
"""Seconds between two looks at the store; that a process has to end by itself; that one waits for the others."""
_FAILURE, _STOP = "failure", "stop"


class Failure(NamedTuple):
    """The first failure of all processes.

    Attributes:
        rank: the process that failed, and says so.
        status: exit status of all processes.
        text: one line for the user.
    """

    rank: int
    status: int
    text: str


class Peers:
    """The processes of a run, as one of them sees the others.

    Args:
        store: torch's store that the processes met at; no other thread uses this connection for long.
        rank: of this process.
        world: number of processes.
        local: process ids of the other ranks on this machine.
    """

    def __init__(self, store: Any, rank: int, world: int, local: dict[int, int]) -> None:
        self.rank, self.world = rank, world
        self.advice = ""
        self._store = store
        # A descriptor of a process becomes readable when it ends, though nobody has waited for it yet.
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
        """Start counting at a step; every process calls it before any of them trains."""
        with self._lock:
            self._done = step

    def stops(self, done: int, signalled: str) -> str:
        """Return the signal that ends all processes after this step; empty where they go on.

        A process that has heard of a signal says after which step it can stop at the earliest. Nobody passes the end of
        that step before all have said so, and all stop after the latest of those steps.

        Args:
            done: steps done.
            signalled: name of the signal that this process got, if any.
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
            pass  # the thread ends this process should another one fail meanwhile
        assert self._stop_step is not None, "known"
        return self._store.get(_STOP).decode() if done >= self._stop_step else ""

    def fail(self, text: str, status: int) -> NoReturn:
        """End this process in the way of the first failure of all, which is this one if there is no other."""
        with contextlib.suppress(RuntimeError):
            self._end(self._publish(text, status))
        self._exit(Failure(self.rank, status, text))  # the store is gone, and with it the others' failures

    def explain(self) -> None:
        """End this process if another one has failed or is gone, which may be why a collective raised an error here."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            found = self._look()
            if found:
                self._end(found)
            time.sleep(_POLL / 2)

    def leave(self) -> None:
        """Stop watching: this process is done. The first one, which may serve the store, waits for the others."""
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
                # The main thread may be about to end by itself, or wait for ever in a collective.
                time.sleep(_GRACE)
                self._end(found)
            try:
                self._agree_on_step()
            except RuntimeError:
                continue  # the next look says why

    def _look(self) -> Failure | None:
        """Return the failure of all processes, if there is one by now."""
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
        """Return the failure of all where the store is gone; the lowest rank that is left on a machine says it."""
        ended = self._ended()
        speaks = all(other in ended for other in self._ends.values() if other < self.rank)
        # torchrun and accelerate serve the store themselves.
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
        """Write down a failure unless there is one already; return the one that counts."""
        mine = json.dumps(Failure(self.rank, status, text))
        return Failure(*json.loads(self._store.compare_set(_FAILURE, "", mine)))

    def _agree_on_step(self) -> None:
        """Say when this process can stop, once anybody has asked; find the step once all have said so."""
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
        """Wait until other processes, by default all, have set their `key`, or have ended; for a few seconds."""
        deadline = time.monotonic() + _PATIENCE
        waiting = (set(range(self.world)) if of is None else of) - {self.rank}
        while waiting and time.monotonic() < deadline:
            waiting -= {other for other in waiting if self._store.check([f"{key}/{other}"])} | set(self._ended())
            time.sleep(0.02)

    def _end(self, failure: Failure) -> NoReturn:
        """End this process with the status of all. The one that failed says why, and leaves when all know.

        Otherwise the launcher would see it end, and end the others before they know. The first process, which may serve
        the store, leaves last.
        """
        self._ending.acquire()  # for good: the main thread and the watching one may both come here
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
        # Not sys.exit: another thread may wait for ever in a collective, and so would the end of the interpreter.
        os._exit(failure.status)


_PEERS: list[Peers] = []


def join(store: Any, rank: int, world: int, local: dict[int, int]) -> None:
    """Watch the other processes from now on; see `Peers`."""
    _PEERS.append(Peers(store, rank, world, local))


def peers() -> Peers | None:
    """Return the other processes; None where there are none, or they have not met yet."""
    return _PEERS[-1] if _PEERS else None


def leave() -> None:
    """Stop watching the other processes; every process calls it when all is done."""
    while _PEERS:
        _PEERS.pop().leave()


def end_with_launcher(launched: bool) -> None:
    """Have the kernel send SIGTERM to this process when the launcher that started it ends (Linux only).

    Args:
        launched: whether a launcher is known to have started it; else its command line says so. A shell is none: what
            it has started may outlive it.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{parent}/cmdline").read_bytes()
        launched |= any(name in command for name in (b"accelerate", b"torchrun", b"torch.distributed"))
    if not launched or not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the kernel knew
        signal.raise_signal(signal.SIGTERM)
