"""Work on many files in threads, in order: most of it waits for the file system."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WAIT_SECONDS = 500e-6  # a call that waits so long for the file system is better made in a thread ...
WAITS = 2  # ... when so many in a row do
T = TypeVar("T")
U = TypeVar("U")


def ordered_map(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterator[T], ahead: int) -> Iterator[U]:
    """Results of ``function`` in order, with at most ``ahead`` items in flight (``pool.map`` would queue them all)."""
    queue: deque[Future[U]] = deque()
    for item in items:
        queue.append(pool.submit(function, item))
        if len(queue) >= ahead:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()


class PatientMap:
    """Maps in order: here while the file system answers at once, ahead by the threads of a pool once it does not.

    With a warm cache, handing work to a thread takes longer than doing it.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waits = 0  # calls in a row that waited; a single one may have been interrupted by another process

    def __call__(self, function: Callable[[T], U], items: Iterator[T], ahead: int) -> Iterator[U]:
        for item in items:
            if self._waits >= WAITS:
                yield from ordered_map(self._pool, function, itertools.chain([item], items), ahead)
                return
            start = time.perf_counter() - time.thread_time()
            result = function(item)
            waited = time.perf_counter() - time.thread_time() - start > WAIT_SECONDS
            self._waits = self._waits + 1 if waited else 0
            yield result
