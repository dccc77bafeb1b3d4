"""Reading in threads only where the file system makes one wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cltt.files import maps


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_calls_that_wait_go_to_threads_and_stay_in_order(pool: ThreadPoolExecutor) -> None:
    callers = []

    def wait(item: int) -> int:
        callers.append(threading.current_thread())
        time.sleep(0.005 if item % 2 else 0.002)
        return item

    mapped = maps.AdaptiveMap(pool)
    assert list(mapped(wait, iter(range(40)), 16)) == list(range(40))
    assert callers[: maps.WAITS] == [threading.main_thread()] * maps.WAITS
    assert threading.main_thread() not in callers[maps.WAITS :]
    callers.clear()
    assert list(mapped(wait, iter(range(5)), 16)) == list(range(5))
    assert threading.main_thread() not in callers, "it has forgotten that the file system is slow"


def test_one_wait_alone_changes_nothing(pool: ThreadPoolExecutor) -> None:
    mapped = maps.AdaptiveMap(pool)

    def work(item: int) -> threading.Thread:
        if item == 3:
            time.sleep(0.01)
        return threading.current_thread()

    assert set(mapped(work, iter(range(10)), 4)) == {threading.main_thread()}


def test_at_most_so_many_items_are_in_flight(pool: ThreadPoolExecutor) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(30):
            taken = number + 1
            yield number

    mapped = maps.AdaptiveMap(pool)
    for done, _ in enumerate(mapped(lambda _: time.sleep(0.002), items(), 4)):
        assert taken - done <= 4
