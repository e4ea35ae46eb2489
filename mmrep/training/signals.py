"""Ctrl-C and SIGTERM end a run: after its current step with a checkpoint while it trains, at once before and after."""

import signal
import threading
from types import FrameType


class Stopped(Exception):
    """The run was ended by a signal and can be resumed. Exit status 75."""


class StopSignal:
    """Whether SIGINT or SIGTERM has arrived. Used as a context; it raises KeyboardInterrupt at once, unless `patient`.

    Attributes:
        name: of the signal that has arrived; empty if none has.
        patient: whether the first signal only sets `name`; a second Ctrl-C ends at once nevertheless.
        twice: whether a second Ctrl-C has come.
    """

    def __init__(self) -> None:
        self.name = ""
        self.patient = False
        self.twice = False
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        again, self.name = bool(self.name), self.name or signal.Signals(number).name
        self.twice |= again and number == signal.SIGINT
        if self.twice or not (self.patient or again):
            raise KeyboardInterrupt
