"""Runs: lists of windows of one clip that share frames. An epoch shuffles the runs.

Legend: p (``distance``) is the index offset between windows that share the most frames, see
``WindowIndex.sharing_distance``. A clip has p phases: windows j, j+p, j+2p, ... A run is up to ``windows_per_run``
consecutive windows of one phase. The runs of a phase are as equal in length as possible. All runs, laid end to end in
random order and rotated by a random number of windows, are the sequence of the epoch. A position is the index of a
window in this sequence, from 0 to N-1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cltt.sampling.permutation import FeistelPermutation, random_below, shuffled, shuffled_in_groups
from cltt.sampling.windows import WindowIndex

# ShuffledRuns keeps the position of every 64th run.
_STRIDE = 64
# RunTable.lengths computes this many runs at a time, which bounds its memory.
_PIECE = 1 << 18


@dataclass(frozen=True)
class Segments:
    """Runs or parts of runs. Each has ``count`` windows: first, first + distance, ...

    ``first``, ``count`` and ``distance`` are int64 [segments].
    """

    first: np.ndarray
    count: np.ndarray
    distance: np.ndarray

    def windows(self) -> np.ndarray:
        """All window ids, segment by segment: int64 [sum of count]."""
        before = np.cumsum(self.count) - self.count
        ids = np.repeat(self.first - before * self.distance, self.count)
        ids += np.repeat(self.distance, self.count) * np.arange(len(ids))
        return ids


class SingleWindows:
    """The sequence of an epoch whose runs are single windows, computed without a table.

    Attributes:
        windows: maps positions to window ids.
    """

    def __init__(self, num_windows: int, seeds: np.random.SeedSequence) -> None:
        self.windows = FeistelPermutation(num_windows, seeds)

    def segments(self, low: int, high: int) -> Segments:
        """The windows at positions ``low`` to ``high-1``, one segment each."""
        one = np.ones(high - low, dtype=np.int64)
        return Segments(self.windows(np.arange(low, high)), one, one)


class RunTable:
    """All runs of all clips, numbered clip by clip and phase by phase.

    Runs are computed from their numbers, so memory is per clip, not per run. Clip numbers count only the clips that
    have windows. ``len()`` is the number of runs.
    """

    def __init__(self, index: WindowIndex, windows_per_run: int) -> None:
        self._first_window = index.first_window
        self._windows = np.diff(self._first_window)
        # In a clip whose windows share no frames, each window is a phase and a run.
        self._distance = np.where(index.sharing_distance > 0, index.sharing_distance, self._windows)
        self._windows_per_run = windows_per_run
        short, long, num_long = self._phases(np.arange(len(self._windows)))[1:]
        runs = num_long * self._runs_in(long) + (self._distance - num_long) * self._runs_in(short)
        self.first_run = np.concatenate([[0], np.cumsum(runs)])

    def __len__(self) -> int:
        return int(self.first_run[-1])

    def clip_of(self, runs: np.ndarray) -> np.ndarray:
        """Clip of each of ``runs``: int64 of the same shape."""
        return np.searchsorted(self.first_run, runs, side="right") - 1

    def segments(self, runs: np.ndarray, clip: np.ndarray) -> Segments:
        """The windows of ``runs``, which lie in ``clip``; both int64 [n]."""
        distance, short, long, num_long = self._phases(clip)
        run = runs - self.first_run[clip]
        in_long = num_long * self._runs_in(long)
        is_long = run < in_long
        length = np.where(is_long, long, short)
        in_phase = self._runs_in(length)
        phase, number = np.divmod(np.where(is_long, run, run - in_long), in_phase)  # number of the run in its phase
        phase += np.where(is_long, 0, num_long)
        begin, end = number * length // in_phase, (number + 1) * length // in_phase
        return Segments(self._first_window[clip] + phase + begin * distance, end - begin, distance)

    def lengths(self) -> np.ndarray:
        """Windows of every run: int32 [runs]."""
        lengths = np.empty(len(self), dtype=np.int32)
        for low in range(0, len(self), _PIECE):
            runs = np.arange(low, min(low + _PIECE, len(self)))
            lengths[runs] = self.segments(runs, self.clip_of(runs)).count
        return lengths

    def _phases(self, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per clip: number of phases, windows per short and per long phase, number of long phases.

        A long phase has one window more. Long phases come first.
        """
        short, num_long = np.divmod(self._windows[clip], self._distance[clip])
        return self._distance[clip], short, short + 1, num_long

    def _runs_in(self, windows: np.ndarray) -> np.ndarray:
        return -(-windows // self._windows_per_run)


class ClipGroups:
    """Random groups of at most ``clips_per_group`` clips, as equal as possible; ``len()`` is their number.

    Attributes:
        of_clip: group of each clip that has windows, int64 [clips with windows].
    """

    def __init__(self, index: WindowIndex, clips_per_group: int, seeds: np.random.SeedSequence) -> None:
        windows = np.diff(index.first_window)
        self._num_groups = -(-len(windows) // clips_per_group)
        self.of_clip = np.empty(len(windows), dtype=np.int64)
        self.of_clip[shuffled(len(windows), seeds)] = np.arange(len(windows)) * self._num_groups // len(windows)
        self._ends = np.cumsum(np.bincount(self.of_clip, windows).astype(np.int64))

    def __len__(self) -> int:
        return self._num_groups

    def most_between(self, bounds: np.ndarray, begin: int) -> int:
        """The largest number of groups that have windows between two neighbouring ``bounds`` (rising positions).

        The sequence is rotated by ``begin`` windows. A group that this divides lies at both ends and counts at each.
        """
        ends = np.sort((self._ends - begin) % self._ends[-1])
        inside = np.searchsorted(ends, bounds[1:], side="left") - np.searchsorted(ends, bounds[:-1], side="right")
        return int(inside.max()) + 1


class ShuffledRuns:
    """The sequence of an epoch: all runs in random order.

    It stores the order of the runs and the position of every 64th run. The sequence begins at a random window, often in
    the middle of a run; the part of that run before it is the end of the sequence. An epoch leaves out the last
    positions: if the sequence began with a whole run, the windows at the ends of runs would be left out more often.

    With ``group_of_clip``, int64 [clips with windows], runs are shuffled within groups of clips only, and the groups
    follow each other in the order of their numbers.

    Attributes:
        begin: number of windows that the sequence is rotated by.
    """

    def __init__(
        self,
        index: WindowIndex,
        windows_per_run: int,
        seeds: np.random.SeedSequence,
        rotation: np.random.SeedSequence,
        group_of_clip: np.ndarray | None = None,
    ) -> None:
        self._table = RunTable(index, windows_per_run)
        lengths = self._table.lengths()
        if group_of_clip is None:
            order = shuffled(len(lengths), seeds)
        else:
            order = shuffled_in_groups(np.repeat(group_of_clip, np.diff(self._table.first_run)), 1, seeds)[0]
        order = order.astype(np.int32 if len(lengths) < 2**31 else np.int64)
        begin = self.begin = random_below(len(index), rotation)
        ends = np.cumsum(lengths[order])
        divided = int(np.searchsorted(ends, begin, side="right"))
        skipped = begin - int(ends[divided]) + int(lengths[order[divided]])
        del ends
        self._runs = np.concatenate([order[divided:], order[: divided + 1]])
        windows = np.add.reduceat(lengths[self._runs], np.arange(0, len(self._runs), _STRIDE), dtype=np.int64)
        self._begins = np.cumsum(windows) - windows - skipped  # of the 1st, 65th, ... run; the 1st is the divided one

    def segments(self, low: int, high: int) -> Segments:
        """The runs and parts of runs at positions ``low`` to ``high-1``."""
        start = (int(np.searchsorted(self._begins, low, side="right")) - 1) * _STRIDE
        stop = int(np.searchsorted(self._begins, high)) * _STRIDE
        runs = self._runs[start:stop].astype(np.int64)
        found = self._table.segments(runs, self._table.clip_of(runs))
        begins = self._begins[start // _STRIDE] + np.cumsum(found.count) - found.count
        before = np.maximum(low - begins, 0)
        count = np.minimum(found.count, high - begins) - before
        held = count > 0
        first = found.first + before * found.distance
        return Segments(first[held], count[held], found.distance[held])
