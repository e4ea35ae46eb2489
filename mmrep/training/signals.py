"""Ctrl-C and SIGTERM. During training they end a run after the current step with a checkpoint, otherwise at once."""

import signal
import threading
from types import FrameType


class Stopped(Exception):
    """A run was ended by a signal and can be resumed. Exit status 75."""


class StopSignal:
    """A context that records SIGINT and SIGTERM. Unless `patient`, they raise KeyboardInterrupt at once.

    Attributes:
        name: name of the signal that has arrived, or an empty text.
        patient: whether the first signal only sets `name`. A second Ctrl-C always raises.
        twice: whether Ctrl-C has arrived twice.
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
