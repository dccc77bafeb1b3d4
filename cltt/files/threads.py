"""Work on many files in threads, in order: most of it waits for the file system."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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


class WaitGauge:
    """Whether calls wait for the file system: once ``in_a_row`` of them have, until one does not.

    With a warm cache, handing work to a thread takes longer than doing it. Any thread may call it.
    """

    def __init__(self, in_a_row: int = WAITS) -> None:
        self._in_a_row = in_a_row
        self._waits = 0  # a single one may have been interrupted by another process, or waited for the interpreter

    @property
    def slow(self) -> bool:
        return self._waits >= self._in_a_row

    def timed(self, function: Callable[[], T]) -> T:
        """What ``function`` returns; how long it waited is noted."""
        start = time.perf_counter() - time.thread_time()
        result = function()
        waited = time.perf_counter() - time.thread_time() - start > WAIT_SECONDS
        self._waits = self._waits + 1 if waited else 0
        return result


class AdaptiveMap:
    """Maps in order: here while the file system answers at once, ahead by the threads of a pool once it does not."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self._gauge = pool, WaitGauge()

    def __call__(self, function: Callable[[T], U], items: Iterator[T], ahead: int) -> Iterator[U]:
        for item in items:
            if self._gauge.slow:
                yield from ordered_map(self._pool, function, itertools.chain([item], items), ahead)
                return
            yield self._gauge.timed(lambda: function(item))  # noqa: B023  # called at once


def map_together(function: Callable[[T], U], items: Sequence[T], helpers: int) -> list[U]:
    """``function`` of each item, in order, by the caller and up to ``helpers`` threads that end with the call.

    Raises what a call raised; items that were not begun by then are left. The threads are daemons: one that hangs in a
    read does not keep the process alive.
    """
    todo = deque(enumerate(items))
    results: dict[int, U] = {}
    failures: list[BaseException] = []

    def work() -> None:
        with contextlib.suppress(IndexError):  # another thread took the last one
            while todo:
                place, item = todo.popleft()
                try:
                    results[place] = function(item)
                except BaseException as error:
                    failures.append(error)
                    todo.clear()

    threads = [
        threading.Thread(target=work, name="cltt-help", daemon=True) for _ in range(min(helpers, len(items) - 1))
    ]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [results[place] for place in range(len(items))]
