"""What a batch system or a person asks of a running training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

STOPPED_EARLY = "stopped on request before the first step, so there is nothing new to save\n"
STOPPED_LATE = (
    "stopped on request behind the last step; the same command with --resume goes on from the newest checkpoint\n"
)


class Request(IntEnum):
    """What is asked of the loop after a step; of several ranks the largest is done."""

    NOTHING = 0
    SAVE = 1  # and go on
    STOP = 2  # save and stop: the batch system asked
    INTERRUPT = 3  # save and stop: Ctrl-C

    @property
    def stops(self) -> bool:
        return self >= Request.STOP


class StopRequested(BaseException):
    """A stop was asked for inside :meth:`StopSignals.interrupting`."""


class StopSignals:
    """SIGUSR1, SIGTERM and Ctrl-C (SIGINT) ask the run to save and stop.

    Outside :meth:`deferred` nothing is there to save (behind it: nothing that could be), so the process ends at once,
    by SystemExit (Ctrl-C: KeyboardInterrupt); inside, the signal is remembered and the loop acts on it after the step
    (several ranks: at the latest after the next one, which is the same for all). Further signals change nothing, but
    that a second Ctrl-C ends the process at once.

    Args:
        notice: said on the terminal at the first Ctrl-C ("": nothing).
        exit_status: of the SystemExit.
    """

    def __init__(self, notice: str = "", exit_status: int = 1) -> None:
        self.request = Request.NOTHING
        self._deferred = self._interrupting = False
        self._words = STOPPED_EARLY
        self._notice = notice
        self._exit_status = exit_status
        numbers = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM", "SIGINT") if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}

    def restore(self) -> None:
        """Give the signals back to those who had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            self._words = STOPPED_LATE

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StopRequested inside, once a stop is asked for: around what may be left at any point."""
        self._interrupting = True
        try:
            if self.request.stops:
                raise StopRequested
            yield
        finally:
            self._interrupting = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:
            self.request = max(self.request, Request.STOP)
            if not self._deferred:
                os.write(2, self._words.encode())
                raise SystemExit(self._exit_status)
        elif self.request is Request.INTERRUPT or not self._deferred:
            raise KeyboardInterrupt
        else:
            self.request = Request.INTERRUPT
            os.write(2, self._notice.encode())  # not print(), which may be halfway through a line
        if self._interrupting:
            self._interrupting = False
            raise StopRequested
