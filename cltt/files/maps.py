"""Maps over many files in threads, with results in order. Threads help because reads wait for the file system."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

WAIT_SECONDS = 500e-6  # a call that waits longer than this for the file system counts as slow
WAITS = 2  # slow calls in a row after which threads are worth their cost
T = TypeVar("T")
U = TypeVar("U")


def ordered_map(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterator[T], ahead: int) -> Iterator[U]:
    """Results of ``function`` in order, with at most ``ahead`` items queued (``pool.map`` would queue them all)."""
    queue: deque[Future[U]] = deque()
    for item in items:
        queue.append(pool.submit(function, item))
        if len(queue) >= ahead:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()


class WaitGauge:
    """Tells whether calls wait for the file system: after ``in_a_row`` slow calls, until the next fast one.

    When the files are in the system's cache, handing work to a thread takes longer than doing it. Any number of threads
    may use a gauge.
    """

    def __init__(self, in_a_row: int = WAITS) -> None:
        self._in_a_row = in_a_row
        self._waits = 0  # slow calls in a row; a single one may only have waited for the CPU or the interpreter

    @property
    def slow(self) -> bool:
        """Whether the last calls waited for the file system."""
        return self._waits >= self._in_a_row

    def timed(self, function: Callable[[], T]) -> T:
        """The result of ``function()``; the time that it waited is measured."""
        start = time.perf_counter() - time.thread_time()
        result = function()
        waited = time.perf_counter() - time.thread_time() - start > WAIT_SECONDS
        self._waits = self._waits + 1 if waited else 0
        return result


class AdaptiveMap:
    """A map with results in order, which uses the threads of ``pool`` only once the file system is slow."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self._gauge = pool, WaitGauge()

    def __call__(self, function: Callable[[T], U], items: Iterator[T], ahead: int) -> Iterator[U]:
        for item in items:
            if self._gauge.slow:
                yield from ordered_map(self._pool, function, itertools.chain([item], items), ahead)
                return
            yield self._gauge.timed(lambda: function(item))  # noqa: B023  # called at once


def map_together(function: Callable[[T], U], items: Sequence[T], helpers: int) -> list[U]:
    """Results of ``function`` in order, computed by the caller and up to ``helpers`` threads that end with the call.

    After a call has raised an error no further item is begun, and the error is raised here. The threads are daemons: a
    thread that hangs in a read does not keep the process alive.
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
