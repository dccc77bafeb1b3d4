"""Drawn data sets and settings of a plan, with every window listed one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cltt import EpochPlan, WindowIndex
from tests.helpers.obvious import list_windows

MAX_WINDOWS = 20_000


@dataclass(frozen=True)
class Case:
    """One drawn data set, its window settings, and arguments of a plan; the windows come from a list of them all."""

    lengths: tuple[int, ...]
    window: tuple[int, int, int, int]  # size, longest step, stride, limit
    shortest: int  # step
    short: int
    batch_size: int
    options: tuple[tuple[str, Any], ...]

    @cached_property
    def listed(self) -> np.ndarray:
        """(clip, start) of every window [N, 2]."""
        return np.array(list_windows(self.lengths, *self.window, short=self.short), dtype=np.int64)

    @cached_property
    def frames(self) -> np.ndarray:
        """Frame ids of every window [N, T]; where steps are drawn, as the plan has them."""
        size, step = self.window[:2]
        if self.draws_steps:
            return self.made.frames(np.arange(len(self.listed)))
        begins = np.concatenate([[0], np.cumsum(self.lengths)])
        return (begins[self.listed[:, 0]] + self.listed[:, 1])[:, None] + np.arange(size) * step

    @property
    def draws_steps(self) -> bool:
        return self.shortest < self.window[1]

    @property
    def gap(self) -> int:
        return (self.window[0] - 1) * self.window[1] + 1 + int(dict(self.options).get("min_gap", 0))

    @property
    def needed(self) -> int:
        """Steps that let the data keep windows apart, by the rule as it is written down."""
        most = int(np.bincount(self.listed[:, 0]).max())
        return min(-(-self.gap // self.window[2]), most)

    @property
    def world_sizes(self) -> list[int]:
        """The world sizes that divide B, the larger ones thinned out."""
        sizes = [size for size in range(1, self.batch_size + 1) if self.batch_size % size == 0]
        return sizes if len(sizes) < 8 else [*sizes[:7], sizes[-1]]

    def plan(self, **changed: Any) -> EpochPlan:
        size, longest, stride, limit = self.window
        index = WindowIndex(self.lengths, size, (self.shortest, longest), stride, limit, short_clip_windows=self.short)
        return EpochPlan(index, self.batch_size, **{**dict(self.options), **changed})

    @cached_property
    def made(self) -> EpochPlan:
        return self.plan()

    @cached_property
    def batches(self) -> np.ndarray:
        """All batches [S, B]."""
        return np.stack([self.made.batch(step) for step in range(len(self.made))])

    def rank_parts(self, world_size: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """(block, rank, its windows [K, b]) for every block and rank."""
        share = self.batch_size // world_size
        for block in range(self.made.num_blocks):
            steps = self.made.block_steps(block)
            for rank in range(world_size):
                yield block, rank, self.batches[steps.start : steps.stop, rank * share : (rank + 1) * share]

    @property
    def sharing(self) -> int:
        """How far apart in number windows of a clip that is not thinned out share most frames; 0: none do."""
        size, step, stride = self.window[:3]
        between = stride if self.draws_steps else math.lcm(step, stride)
        return between // stride if 0 < between <= (size - 1) * step else 0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size = draw(st.integers(2, 16) | st.just(1))
    step = draw(st.integers(1, 12) | st.integers(0, 90) | st.integers(0, 1000))
    stride = draw(st.integers(1, 4) | st.integers(1, 50) | st.just(max(1, step)))
    span = (size - 1) * step + 1
    length = st.integers(0, 2 * span + 100) | st.integers(span, span + 100 * stride)
    lengths = draw(st.lists(length, min_size=draw(st.integers(0, 20)), max_size=20))
    lengths.append(draw(st.integers(span, span + 300)))
    if draw(st.integers(0, 4)) == 3:
        lengths.append(span + draw(st.integers(3_000, 12_000)))
    lengths = draw(st.permutations(lengths))
    limit, short = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 7, 60])), draw(st.sampled_from([0, 0, 0, 1, 2, 30]))
    windows = len(list_windows(lengths, size, step, stride, limit, short=short))
    if windows > MAX_WINDOWS:
        limit = 60
        windows = len(list_windows(lengths, size, step, stride, 60, short=short))
    steps = draw(st.sampled_from([1, 2, 3, 6, 17, 40, 90, 150, 400, windows]))
    batch_size = max(1, windows // steps)
    batch_size -= batch_size % draw(st.sampled_from([1, 2, 3, 8])) if batch_size > 8 else 0
    options = {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "epoch": draw(st.integers(0, 1000)),
        "min_gap": draw(st.sampled_from([0, 0, 1, 30])),
        "depth": draw(st.none() | st.integers(1, 100)),
        "run": draw(st.none() | st.integers(1, 40)),
        "clips_per_block": draw(st.sampled_from([0, 0, 0, 1, 2, 5, 100])),
    }
    shortest = draw(st.just(step) | st.integers(1, max(1, step)))
    return Case(
        tuple(lengths), (size, step, stride, limit), min(shortest, step), short, batch_size, tuple(options.items())
    )
