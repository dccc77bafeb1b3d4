"""An epoch's windows laid end to end in runs, and one block of them arranged so that no two neighbours share a step.

Legend: a run is up to ``run`` consecutive windows of one clip; a position is a place in the shuffled row of all
windows; a segment is a stretch of consecutive window ids (a run, or what a block's end leaves of it).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cltt._permutation import KeyedPermutation, shuffled
from cltt.windows import WindowIndex


class Layout(Protocol):
    """All windows in a random order of runs."""

    def segments(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """First window id and number of windows of the segments at positions ``low`` to ``high-1``: int64, int64."""


class SingleWindows:
    """Runs of one window: a keyed permutation, no table."""

    def __init__(self, num_windows: int, seeds: np.random.SeedSequence) -> None:
        self.windows = KeyedPermutation(num_windows, seeds)

    def segments(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        return self.windows(np.arange(low, high)), np.ones(high - low, dtype=np.int64)


class ShuffledRuns:
    """Runs of unequal length (clips end): a table of the runs in shuffled order and of where each ends."""

    def __init__(self, index: WindowIndex, run: int, seeds: np.random.SeedSequence) -> None:
        counts = index.windows_per_clip
        self._run = run
        self._first_window = np.concatenate([[0], np.cumsum(counts)])
        self._first_run = np.concatenate([[0], np.cumsum(-(-counts // run))])
        num_runs = int(self._first_run[-1])
        lengths = np.full(num_runs, run, dtype=np.int64)
        held = counts > 0
        lengths[self._first_run[1:][held] - 1] = (counts[held] - 1) % run + 1
        self._runs = shuffled(num_runs, seeds)
        self._ends = np.cumsum(lengths[self._runs])

    def segments(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        start, stop = np.searchsorted(self._ends, [low, high - 1], side="right")
        runs, ends = self._runs[start : stop + 1], self._ends[start : stop + 1]
        clip = np.searchsorted(self._first_run, runs, side="right") - 1
        first = self._first_window[clip] + (runs - self._first_run[clip]) * self._run
        begins = ends - np.minimum(self._first_window[clip + 1] - first, self._run)
        cut = np.maximum(low - begins, 0)
        return first + cut, np.minimum(ends, high) - begins - cut


class Block:
    """The windows at positions ``low`` to ``high-1``, rearranged into chains, and looked up by place 0..high-low-1.

    A chain holds windows of one clip in rising order; windows of different chains start ``gap`` frames or more apart
    (or lie in different clips). So windows of a clip that lie at least as many places apart as the clip needs steps
    never start less than ``gap`` apart. Chains come in random order.
    """

    def __init__(
        self, index: WindowIndex, layout: Layout, low: int, high: int, gap: int, seeds: np.random.SeedSequence
    ) -> None:
        first, count = layout.segments(low, high)
        order = np.argsort(first)
        first, count = first[order], count[order]
        clip, start = index.locate(first)
        last_start = index.locate(first + count - 1)[1]
        begins_chain = np.ones(len(first), dtype=bool)
        begins_chain[1:] = (clip[1:] != clip[:-1]) | (start[1:] - last_start[:-1] >= gap)
        chain = np.cumsum(begins_chain) - 1
        order = np.argsort(shuffled(int(chain[-1]) + 1, seeds)[chain], kind="stable")
        self._first = first[order]
        self._place = np.concatenate([[0], np.cumsum(count[order])])

    def windows(self, places: np.ndarray) -> np.ndarray:
        """Window ids at ``places``: int64 of the same shape."""
        segment = np.searchsorted(self._place, places, side="right") - 1
        return self._first[segment] + places - self._place[segment]

    def segment_lengths(self, low: int, high: int) -> np.ndarray:
        """Numbers of windows in the segments that places ``low`` to ``high-1`` cover: int64, 0 outside."""
        return np.diff(np.clip(self._place, low, high))


class FreeBlock:
    """A block of windows none of which can disturb another: already in random order, looked up without a table."""

    def __init__(self, layout: SingleWindows, low: int) -> None:
        self._layout, self._low = layout, low

    def windows(self, places: np.ndarray) -> np.ndarray:
        """Window ids at ``places``: int64 of the same shape."""
        return self._layout.windows(places + self._low)
