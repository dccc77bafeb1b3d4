"""100 million windows over a million clips: time and memory of an epoch's set-up, time of a batch."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cltt import EpochPlan, WindowIndex

pytestmark = pytest.mark.slow


def seconds(call: Callable[[], Any]) -> float:
    """CPU time of this thread (all of it runs in one), which others on the machine disturb less than the clock."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


@pytest.fixture(scope="module", params=[(5, 2, 1), (5, 2, 10)], ids=str)
def data(request: pytest.FixtureRequest) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Clip lengths that give 100 million windows, and the window settings."""
    size, step, stride = request.param
    offered = np.random.default_rng(0).integers(60, 142, 1_000_000)
    return (size - 1) * step + 1 + (offered - 1) * stride, request.param


def test_setting_up_an_epoch_takes_little_time_and_memory(data: tuple[np.ndarray, tuple[int, int, int]]) -> None:
    lengths, window = data

    def set_up() -> EpochPlan:
        return EpochPlan(WindowIndex(lengths, *window), 1024)

    assert min(seconds(set_up) for _ in range(3)) < 3
    tracemalloc.start()
    plan = set_up()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
    assert len(plan.index) > 100_000_000


def test_batches_come_quickly_in_sequence_and_at_any_step(data: tuple[np.ndarray, tuple[int, int, int]]) -> None:
    lengths, window = data
    plan = EpochPlan(WindowIndex(lengths, *window), 1024)
    assert statistics.median(seconds(lambda s=step: plan.batch(s)) for step in range(500)) < 2e-3  # type: ignore[misc]
    steps = np.random.default_rng(1).integers(0, len(plan), 40).tolist()
    assert statistics.median(seconds(lambda s=step: plan.batch(s)) for step in steps) < 20e-3  # type: ignore[misc]
    ids = np.random.default_rng(2).integers(0, len(plan.index), 100_000)
    assert len(ids) / min(seconds(lambda: plan.index.frames(ids)) for _ in range(100)) > 10e6


def test_the_frames_of_a_block_are_bounded_closely(data: tuple[np.ndarray, tuple[int, int, int]]) -> None:
    lengths, window = data
    plan = EpochPlan(WindowIndex(lengths, *window), 1024)
    found = max(len(plan.block_frames(block, rank=3, world_size=8)) for block in (0, 100, plan.num_blocks - 1))
    assert found <= plan.frames_per_block(3, 8) <= 1.1 * found
