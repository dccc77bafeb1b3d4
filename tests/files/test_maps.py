"""Threads that help a caller who waits, and the gauge that tells whether calls wait."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cltt.files.maps import WAIT_SECONDS, WaitGauge, map_together


@pytest.mark.parametrize("helpers", [0, 1, 3, 16])
def test_results_are_those_of_a_loop(helpers: int) -> None:
    for count in (0, 1, 2, 5, 200):
        assert map_together(lambda k: k * k, range(count), helpers) == [k * k for k in range(count)]


def test_many_callers_at_once() -> None:
    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda first: map_together(lambda k: k + first, range(50), 3), range(100)))
    assert found == [list(range(first, first + 50)) for first in range(100)]


def test_items_are_in_work_together_and_the_threads_end_with_the_call() -> None:
    meeting = threading.Barrier(4, timeout=10)  # a broken barrier raises
    helpers: set[threading.Thread] = set()

    def meet(_: int) -> int:
        helpers.add(threading.current_thread())
        return meeting.wait()

    assert sorted(map_together(meet, range(4), 3)) == [0, 1, 2, 3]
    assert len(helpers) == 4 and [thread for thread in helpers if thread.is_alive()] == [threading.current_thread()]


@pytest.mark.parametrize("bad", [0, 7])
def test_what_a_call_raises_is_raised_and_the_rest_is_left(bad: int) -> None:
    begun: list[int] = []

    def fails(k: int) -> int:
        begun.append(k)
        time.sleep(0.002)
        return k // (k != bad)

    with pytest.raises(ZeroDivisionError):
        map_together(fails, range(1000), 2)
    assert len(begun) < 500


def test_a_helper_that_hangs_does_not_keep_the_process() -> None:
    code = """
import threading, time
from cltt.files.maps import map_together
hung = threading.Barrier(4)
hang = lambda _: hung.wait() or time.sleep(60)
threading.Thread(target=map_together, args=(hang, range(3), 2), daemon=True).start()
hung.wait()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("in_a_row", [1, 2, 8])
def test_only_waits_in_a_row_count_and_work_does_not(in_a_row: int) -> None:
    gauge = WaitGauge(in_a_row)

    def work() -> None:
        until = time.thread_time() + 2 * WAIT_SECONDS
        while time.thread_time() < until:
            pass

    for _ in range(in_a_row):
        assert not gauge.slow
        gauge.timed(lambda: time.sleep(4 * WAIT_SECONDS))
    assert gauge.slow
    deadline = time.monotonic() + 10
    while gauge.slow and time.monotonic() < deadline:  # another process may take the core in the midst of it
        gauge.timed(work)
    assert not gauge.slow
    assert gauge.timed(lambda: 7) == 7
