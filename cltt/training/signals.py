"""Turns signals of the batch system or of Ctrl-C into requests to save and stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

STOPPED_EARLY = "stopped on request before the first step, so there is nothing new to save\n"
STOPPED_LATE = (
    "stopped on request after the last step; the same command with --resume continues from the newest checkpoint\n"
)


class Request(IntEnum):
    """What the training loop must do after a step.

    Over several ranks, the largest request counts.
    """

    NOTHING = 0
    SAVE = 1  # save and continue
    STOP = 2  # save and stop, asked for by the batch system
    INTERRUPT = 3  # save and stop, asked for by Ctrl-C

    @property
    def stops(self) -> bool:
        return self >= Request.STOP


class StopRequested(BaseException):
    """Raised inside :meth:`StopSignals.interrupting` when a stop is requested."""


class StopSignals:
    """Handles SIGUSR1, SIGTERM and Ctrl-C (SIGINT) as requests to save and stop.

    Inside :meth:`deferred` a signal sets ``request``, and the training loop stops after the current step (over several
    ranks: at the latest after the next step, which is the same on all). Outside it nothing can be saved, so the process
    ends at once by SystemExit, or by KeyboardInterrupt at Ctrl-C. Further signals are ignored, except a second Ctrl-C,
    which ends the process at once.

    Args:
        notice: printed to stderr at the first Ctrl-C ("": nothing).
        exit_status: exit status of the SystemExit.

    Attributes:
        request: the largest request so far.
    """

    def __init__(self, notice: str = "", exit_status: int = 1) -> None:
        self.request = Request.NOTHING
        self._deferred = self._interrupting = False
        self._exit_message = STOPPED_EARLY
        self._notice = notice
        self._exit_status = exit_status
        numbers = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM", "SIGINT") if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}

    def restore(self) -> None:
        """Restore the signal handlers that were set before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, signals set ``request`` instead of ending the process."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            self._exit_message = STOPPED_LATE

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a stop raises StopRequested at once; for code that may be abandoned at any point."""
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
                os.write(2, self._exit_message.encode())
                raise SystemExit(self._exit_status)
        elif self.request is Request.INTERRUPT or not self._deferred:
            raise KeyboardInterrupt
        else:
            self.request = Request.INTERRUPT
            os.write(2, self._notice.encode())  # not print(), which may be halfway through a line
        if self._interrupting:
            self._interrupting = False
            raise StopRequested
