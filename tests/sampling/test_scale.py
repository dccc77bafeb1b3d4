"""100 million windows over a million clips: memory of an epoch's set-up, work of a batch.

Work is counted in calls of functions and bytes of arrays, the same on any machine; benchmarks/order.py has the times.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cltt import EpochPlan, WindowIndex

pytestmark = pytest.mark.slow


def calls(work: Callable[[], Any]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that is held beyond what was held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module", params=[(5, 2, 1), (5, 2, 10)], ids=str)
def data(request: pytest.FixtureRequest) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Clip lengths that give 100 million windows, and the window settings."""
    size, step, stride = request.param
    offered = np.random.default_rng(0).integers(60, 142, 1_000_000)
    return (size - 1) * step + 1 + (offered - 1) * stride, request.param


def test_setting_up_an_epoch_takes_little_memory(data: tuple[np.ndarray, tuple[int, int, int]]) -> None:
    lengths, window = data
    plans: list[EpochPlan] = []
    assert peak_bytes(lambda: plans.append(EpochPlan(WindowIndex(lengths, *window), 1024))) < 400e6
    assert len(plans[0].index) > 100_000_000


def test_a_batch_at_any_step_is_little_work(data: tuple[np.ndarray, tuple[int, int, int]]) -> None:
    """A replay of the epoch would call thousands of functions; a pass over its windows takes 400 MB or more."""
    lengths, window = data
    plan = EpochPlan(WindowIndex(lengths, *window), 1024)
    steps = [*range(500), *np.random.default_rng(1).integers(0, len(plan), 40).tolist()]
    assert max(calls(lambda s=step: plan.batch(s)) for step in steps) < 2_000  # type: ignore[misc]
    bytes_held = [peak_bytes(lambda s=step: plan.batch(s)) for step in steps]  # type: ignore[misc]
    assert max(bytes_held) < 20e6 and np.median(bytes_held) < 100e3


def test_frames_of_many_windows_are_found_by_arrays(data: tuple[np.ndarray, tuple[int, int, int]]) -> None:
    lengths, window = data
    index = WindowIndex(lengths, *window)
    ids = np.random.default_rng(2).integers(0, len(index), 100_000)
    assert calls(lambda: index.frames(ids)) < 100
    assert peak_bytes(lambda: index.frames(ids)) < 20e6


def test_the_frames_of_a_block_are_bounded_closely(data: tuple[np.ndarray, tuple[int, int, int]]) -> None:
    lengths, window = data
    plan = EpochPlan(WindowIndex(lengths, *window), 1024)
    found = max(len(plan.block_frames(block, rank=3, world_size=8)) for block in (0, 100, plan.num_blocks - 1))
    assert found <= plan.frames_per_block(3, 8) <= 1.1 * found
