"""What a batch system or a person asks of a running training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cltt.cli import EXIT_INTERRUPTED, EXIT_REQUEUE


class StopSignals:
    """SIGUSR1, SIGTERM and Ctrl-C (SIGINT) ask the run to save and stop.

    Outside :meth:`deferred` nothing is there to save, so the process ends at once, with EXIT_REQUEUE (Ctrl-C:
    KeyboardInterrupt); inside, the signal is remembered and the loop acts on it after the step (several ranks: at the
    latest after the next one, which is the same for all). Further signals change nothing, but that a second Ctrl-C
    ends the process at once.

    Args:
        notice: said on the terminal at the first Ctrl-C ("": nothing).
    """

    def __init__(self, notice: str = "") -> None:
        self.requested = False
        self._interrupted = False
        self._deferred = False
        self._notice = notice
        numbers = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM", "SIGINT") if hasattr(signal, name)]
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}

    @property
    def status(self) -> int:
        """Exit status of a run that was stopped."""
        return EXIT_INTERRUPTED if self._interrupted else EXIT_REQUEUE

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

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            if self._interrupted or not self._deferred:
                raise KeyboardInterrupt
            self._interrupted = True
            os.write(2, self._notice.encode())  # not print(), which may be halfway through a line
        elif not self._deferred:
            raise SystemExit(EXIT_REQUEUE)
