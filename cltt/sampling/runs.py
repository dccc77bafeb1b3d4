"""Windows in runs that share frames, and the runs of an epoch laid end to end in random order.

Legend: a clip of n windows whose windows share frames at distance p (see ``WindowIndex.sharing_distance``) falls into p
phases: windows j, j+p, j+2p, ... A run is a stretch of up to ``run_length`` windows of one phase; the runs of a phase
are as equal as can be. A position is a place in the shuffled row of all windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cltt.sampling.permutation import KeyedPermutation, random_below, shuffled
from cltt.sampling.windows import WindowIndex

# Runs between two remembered places of the shuffled row.
_STRIDE = 64
# Runs looked at together in a pass over all of them.
_PIECE = 1 << 18


@dataclass(frozen=True)
class Segments:
    """Stretches of runs: windows first, first + distance, ..., ``count`` of them; int64 [segments] each."""

    first: np.ndarray
    count: np.ndarray
    distance: np.ndarray

    def windows(self) -> np.ndarray:
        """All their window ids, segment by segment: int64."""
        before = np.cumsum(self.count) - self.count
        ids = np.repeat(self.first - before * self.distance, self.count)
        ids += np.repeat(self.distance, self.count) * np.arange(len(ids))
        return ids


class Layout(Protocol):
    """All windows in a random order of runs."""

    def segments(self, low: int, high: int) -> Segments:
        """What lies at positions ``low`` to ``high-1``."""


class SingleWindows:
    """Runs of one window: a keyed permutation, no table."""

    def __init__(self, num_windows: int, seeds: np.random.SeedSequence) -> None:
        self.windows = KeyedPermutation(num_windows, seeds)

    def segments(self, low: int, high: int) -> Segments:
        one = np.ones(high - low, dtype=np.int64)
        return Segments(self.windows(np.arange(low, high)), one, one)


class RunTable:
    """The runs of all clips in closed form, numbered clip by clip, phase by phase: nothing is kept for a run."""

    def __init__(self, index: WindowIndex, run_length: int) -> None:
        self._first_window = index.first_window
        self._windows = np.diff(self._first_window)
        self._distance = np.where(index.sharing_distance > 0, index.sharing_distance, self._windows)
        self._run_length = run_length
        short, long, num_long = self._phases(np.arange(len(self._windows)))[1:]
        runs = num_long * self._runs_of(long) + (self._distance - num_long) * self._runs_of(short)
        self.first_run = np.concatenate([[0], np.cumsum(runs)])

    def __len__(self) -> int:
        return int(self.first_run[-1])

    def clip_of(self, runs: np.ndarray) -> np.ndarray:
        """Position among the clips with windows of each of ``runs``."""
        return np.searchsorted(self.first_run, runs, side="right") - 1

    def segments(self, runs: np.ndarray, clip: np.ndarray) -> Segments:
        """The windows of ``runs``, which lie in ``clip`` (positions among the clips with windows)."""
        distance, short, long, num_long = self._phases(clip)
        run = runs - self.first_run[clip]
        in_long = num_long * self._runs_of(long)
        is_long = run < in_long
        length = np.where(is_long, long, short)
        pieces = self._runs_of(length)
        phase, piece = np.divmod(np.where(is_long, run, run - in_long), pieces)
        phase += np.where(is_long, 0, num_long)
        begin, end = piece * length // pieces, (piece + 1) * length // pieces
        return Segments(self._first_window[clip] + phase + begin * distance, end - begin, distance)

    def lengths(self) -> np.ndarray:
        """Windows of every run: int32 [runs]."""
        lengths = np.empty(len(self), dtype=np.int32)
        for low in range(0, len(self), _PIECE):
            runs = np.arange(low, min(low + _PIECE, len(self)))
            lengths[runs] = self.segments(runs, self.clip_of(runs)).count
        return lengths

    def _phases(self, clip: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(phases, windows of a short one, of a long one, long ones, which come first) of each of ``clip``."""
        short, num_long = np.divmod(self._windows[clip], self._distance[clip])
        return self._distance[clip], short, short + 1, num_long

    def _runs_of(self, windows: np.ndarray) -> np.ndarray:
        return -(-windows // self._run_length)


class ShuffledRuns:
    """Runs of unequal length in random order: their numbers as a table, and where every 64th begins.

    The row is a ring, cut open in front of a random window: what an epoch leaves out, the last few positions, would
    else always be the end of a run. The run that is cut stands at both ends.
    """

    def __init__(
        self, index: WindowIndex, run_length: int, seeds: np.random.SeedSequence, shift: np.random.SeedSequence
    ) -> None:
        self._table = RunTable(index, run_length)
        self._num_windows = len(index)
        lengths = self._table.lengths()
        order = shuffled(len(lengths), seeds).astype(np.int32 if len(lengths) < 2**31 else np.int64)
        cut = random_below(self._num_windows, shift)
        ends = np.cumsum(lengths[order])
        opened = int(np.searchsorted(ends, cut, side="right"))
        begin = int(ends[opened]) - int(lengths[order[opened]])
        del ends
        self._runs = np.concatenate([order[opened:], order[: opened + 1]])
        steps = np.add.reduceat(lengths[self._runs], np.arange(0, len(self._runs), _STRIDE), dtype=np.int64)
        self._begins = np.cumsum(steps) - steps - (cut - begin)  # of runs 0, 64, ...; the first begins at 0 or before

    def segments(self, low: int, high: int) -> Segments:
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
