"""Threads for a caller that may be interrupted at any moment.

Ctrl-C and the handlers of other signals raise in the main thread between any two steps of Python code. The locks of
:mod:`concurrent.futures` are partly Python code and can stay locked by it, and then its threads wait for ever. Here
calls and results go through queues in C; apart from them a caller only starts threads and waits for their end.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """A call of ``function`` in another thread, such as those of :class:`Threads`."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._ended: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run(self) -> None:
        """Call the function."""
        try:
            self._ended.put((self._function(), None))
        except BaseException as error:
            self._ended.put((None, error))

    def outcome(self) -> tuple[T | None, BaseException | None]:
        """What the function returned and what it raised, once it has ended; to be asked for once."""
        return self._ended.get()

    def result(self) -> T:
        """What the function returns, once it has ended; raises what it raised. To be asked for once."""
        result, error = self.outcome()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


class Threads:
    """``count`` daemon threads, started at the first call and ended by :meth:`close`.

    Only one other thread at a time may call the methods. Leaving its ``with`` by an exception drops the calls that
    have not begun.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count, self._name = count, name
        self._threads: list[threading.Thread] = []
        self._calls: queue.SimpleQueue[Call[Any] | None] = queue.SimpleQueue()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.withdraw()
        self.close()

    def submit(self, function: Callable[[], T]) -> Call[T]:
        """Have ``function`` called."""
        call = Call(function)
        self._calls.put(call)
        while len(self._threads) < self._count:
            name = f"{self._name}-{len(self._threads)}"
            self._threads.append(threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True))
            self._threads[-1].start()
        return call

    def withdraw(self) -> list[Call[Any]]:
        """The calls that had not begun, which now never will."""
        withdrawn: list[Call[Any]] = []
        with contextlib.suppress(queue.Empty):
            while (call := self._calls.get_nowait()) is not None:
                withdrawn.append(call)
        return withdrawn

    def close(self) -> None:
        """End the threads once all calls have ended; if this is interrupted, the next time does the rest."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._threads, self._calls = [], queue.SimpleQueue()


def _work(calls: queue.SimpleQueue[Call[Any] | None]) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # or the thread would hold what was computed until the next one
