"""How much of a loop's time went into waiting."""

from __future__ import annotations

import time


class Clock:
    """Splits the time of a loop into waiting for batches and working on them."""

    def __init__(self) -> None:
        self._waited = self._total = self._last = 0.0
        self._working = False

    def resume(self) -> None:
        """A loop begins."""
        self._last = time.perf_counter()

    def waited(self) -> None:
        """The time since the last call went into waiting."""
        self._waited += self._lap()
        self._working = True

    def worked(self) -> None:
        """The time since the last call went into the loop's body."""
        self._lap()
        self._working = False

    @property
    def share(self) -> float:
        """Waiting's share of all time, 0..1; a body that runs now counts up to here."""
        total = self._total + (time.perf_counter() - self._last if self._working else 0.0)
        return self._waited / total if total else 0.0

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        self._total += lap
        return lap
