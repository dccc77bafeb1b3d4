"""One piece of work ahead of whoever takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from cltt.threads import Call, Threads

T = TypeVar("T")


class Ahead(Generic[T]):
    """Calls ``make`` ``count`` times, one after the other in a thread, each while the result before it is used.

    What ``make`` raises is raised where its result is taken, and nothing is made after it.
    """

    def __init__(self, make: Callable[[], T], count: int) -> None:
        self._make, self._left = make, count
        self._thread = Threads(1, "cltt-ahead")
        self._next: Call[T] | None = None
        self._begin()

    def _begin(self) -> None:
        self._next = self._thread.submit(self._make) if self._left else None
        self._left -= 1

    def take(self) -> T:
        """The next result; the one after it is begun."""
        if self._next is None:
            raise RuntimeError("all that was to be made ahead has been taken")
        result = self._next.result()
        self._begin()
        return result

    def close(self) -> None:
        """End the thread, once it is done with what it is at."""
        self._thread.withdraw()
        self._thread.close()
