"""An epoch's windows laid end to end in runs, and one block of them dealt to steps so that no neighbours meet.

Legend: a run is up to ``run`` consecutive windows of one clip; a position is a place in the shuffled row of all
windows; a segment is a stretch of consecutive window ids (a run, or what a block's end leaves of it).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cltt.sampling.permutation import KeyedPermutation, shuffled
from cltt.sampling.windows import WindowIndex


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
    """Runs of unequal length (clips end): a table of the runs in shuffled order and of where each ends.

    Position 0 is window ``shift`` of that row, which goes on from its end to its beginning: what an epoch leaves out,
    the last few positions, would else always be the end of a run.
    """

    def __init__(self, index: WindowIndex, run: int, seeds: np.random.SeedSequence, shift: int) -> None:
        counts = index.windows_per_clip
        self._run, self._shift = run, shift
        self._first_window = np.concatenate([[0], np.cumsum(counts)])
        self._first_run = np.concatenate([[0], np.cumsum(-(-counts // run))])
        num_runs = int(self._first_run[-1])
        lengths = np.full(num_runs, run, dtype=np.int64)
        held = counts > 0
        lengths[self._first_run[1:][held] - 1] = (counts[held] - 1) % run + 1
        self._runs = shuffled(num_runs, seeds)
        self._ends = np.cumsum(lengths[self._runs])

    def segments(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        num_windows = int(self._ends[-1])
        low, high = low + self._shift, high + self._shift
        parts = [(low, min(high, num_windows)), (max(low - num_windows, 0), high - num_windows)]
        first, count = zip(*(self._stretch(*part) for part in parts if part[0] < part[1]), strict=True)
        return np.concatenate(first), np.concatenate(count)

    def _stretch(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Segments between two places of the unshifted row."""
        start, stop = np.searchsorted(self._ends, [low, high - 1], side="right")
        runs, ends = self._runs[start : stop + 1], self._ends[start : stop + 1]
        clip = np.searchsorted(self._first_run, runs, side="right") - 1
        first = self._first_window[clip] + (runs - self._first_run[clip]) * self._run
        begins = ends - np.minimum(self._first_window[clip + 1] - first, self._run)
        cut = np.maximum(low - begins, 0)
        return first + cut, np.minimum(ends, high) - begins - cut


class Block:
    """The windows at ``num_rows * num_steps`` positions from ``low`` on, dealt to steps so that no neighbours meet.

    They are sorted into chains: a chain holds windows of one clip in rising order, and windows of different chains
    start ``gap`` frames or more apart (or lie in different clips). The chains, in random order, close to a ring that is
    cut open at a random place and folded into rows of ``num_steps`` places; each step takes one place of every row.

    Windows of a clip that lie at least ``needed`` places apart may meet in a batch. If every row went to the steps in
    the same order, ``num_steps >= needed`` would do, but then windows ``num_steps`` places apart would always meet. So
    each row shuffles its places in groups of up to ``num_steps - needed + 1``: two places of one step in neighbouring
    rows are still at least ``needed`` apart.
    """

    def __init__(
        self,
        index: WindowIndex,
        layout: Layout,
        low: int,
        shape: tuple[int, int],
        *,
        gap: int,
        needed: int,
        seeds: np.random.SeedSequence,
    ) -> None:
        num_rows, num_steps = shape
        chains, cut, turns, steps = seeds.spawn(4)
        segments = layout.segments(low, low + num_rows * num_steps)
        first, count = _chained(index, *segments, gap, chains)
        self._first, count = _cut_open(first, count, int(cut.generate_state(1, np.uint64)[0]) % (num_rows * num_steps))
        self._place = np.concatenate([[0], np.cumsum(count)])
        self._turns = _turns(num_rows, num_steps, max(1, num_steps - needed + 1), turns)
        self._slot = shuffled(num_steps, steps)

    def windows(self, steps: Any, rows: np.ndarray) -> np.ndarray:
        """Window ids of ``rows`` at ``steps`` (counted within the block): int64, the two broadcast together."""
        places = self._turns[rows, self._slot[steps]] + rows * len(self._slot)
        segment = np.searchsorted(self._place, places, side="right") - 1
        return self._first[segment] + places - self._place[segment]

    def segment_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of windows that neighbouring ``rows`` hold of each segment: int64, with zeros for the others."""
        low, high = int(rows[0]) * len(self._slot), (int(rows[-1]) + 1) * len(self._slot)
        return np.diff(np.clip(self._place, low, high))


class FreeBlock:
    """A block of windows none of which can disturb another: already in random order, looked up without a table."""

    def __init__(self, layout: SingleWindows, low: int, num_steps: int, seeds: np.random.SeedSequence) -> None:
        self._layout, self._low = layout, low
        self._slot = shuffled(num_steps, seeds)

    def windows(self, steps: Any, rows: np.ndarray) -> np.ndarray:
        """Window ids of ``rows`` at ``steps`` (counted within the block): int64, the two broadcast together."""
        return self._layout.windows(self._low + self._slot[steps] + rows * len(self._slot))


def _chained(
    index: WindowIndex, first: np.ndarray, count: np.ndarray, gap: int, seeds: np.random.SeedSequence
) -> tuple[np.ndarray, np.ndarray]:
    """Segments (first window, number of windows), in chains in random order."""
    order = np.argsort(first)
    first, count = first[order], count[order]
    clip, start = index.locate(first)
    last_start = index.locate(first + count - 1)[1]
    begins_chain = np.ones(len(first), dtype=bool)
    begins_chain[1:] = (clip[1:] != clip[:-1]) | (start[1:] - last_start[:-1] >= gap)
    chain = np.cumsum(begins_chain) - 1
    order = np.argsort(shuffled(int(chain[-1]) + 1, seeds)[chain], kind="stable")
    return first[order], count[order]


def _cut_open(first: np.ndarray, count: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
    """The segments as a ring, opened in front of the window at ``place``."""
    ends = np.cumsum(count)
    s = int(np.searchsorted(ends, place, side="right"))
    head = place - (ends[s] - count[s])
    first = np.concatenate([[first[s] + head], first[s + 1 :], first[: s + 1]])
    count = np.concatenate([[count[s] - head], count[s + 1 :], count[:s], [head]])
    return first, count


def _turns(num_rows: int, num_steps: int, group: int, seeds: np.random.SeedSequence) -> np.ndarray:
    """For every row a shuffle of the places 0..num_steps-1 within groups of up to ``group`` neighbours: [rows, steps].

    Sorts random words, as :func:`~cltt.sampling.permutation.shuffled` does; their uppermost bits hold the group, their
    lowest the place.
    """
    num_groups = -(-num_steps // group)
    place_bits, group_bits = np.uint64((num_steps - 1).bit_length()), np.uint64((num_groups - 1).bit_length())
    words = np.random.PCG64(seeds).random_raw(num_rows * num_steps).reshape(num_rows, num_steps)
    place = np.arange(num_steps, dtype=np.uint64)
    words >>= place_bits + group_bits
    words <<= place_bits
    words |= place
    if num_groups > 1:
        words |= (place * np.uint64(num_groups) // np.uint64(num_steps)) << (np.uint64(64) - group_bits)
    words.sort(axis=1)
    words &= (np.uint64(1) << place_bits) - np.uint64(1)
    return words.astype(np.int32)
