"""One block of an epoch: its windows, sorted into chains and assigned to steps.

Two windows of one clip conflict if their starts are less than ``gap`` = span + min_gap frames apart. A chain is a list
of windows of one clip in rising order of start, each in conflict with the one before. Windows of different chains never
conflict. ``max_conflicts`` (d) of a block is the largest number of its windows of one clip that start within ``gap``
frames: a window counts itself, so d is 1 if none conflict.

In a chain, two windows d or more positions apart do not conflict: otherwise they and the windows between them would be
d+1 windows that start within ``gap`` frames. :mod:`cltt.sampling.dealing` puts windows of one step at least d positions
apart, so no batch holds a conflict (if the block has at least d steps).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from cltt.sampling.dealing import Dealing, Stretches, choose_stretches
from cltt.sampling.permutation import random_below, shuffled
from cltt.sampling.runs import Segments, SingleWindows
from cltt.sampling.windows import WindowIndex


@dataclass(frozen=True)
class Spacing:
    """How far apart windows of one clip must be, and how often they should share a batch.

    Attributes:
        gap: minimum distance in frames between the starts of two windows of one clip in a batch.
        max_conflicts_per_run: the most windows of one run that start within ``gap`` frames.
        num_blocks: number of blocks that the windows of one clip are spread over. Two windows of one run are almost
            always in one block, two other windows of the clip with probability 1/num_blocks. So that both kinds of
            pair share a batch equally often over the epochs, a pair of one run has weight 1/num_blocks, any other pair
            weight 1. The number of pairs that should share a step is the sum of the weights of the block's pairs of one
            chain that do not conflict, divided by the steps of the block.
    """

    gap: int
    max_conflicts_per_run: int
    num_blocks: int


class Chains:
    """The windows of ``segments``, sorted by clip and start and cut into chains.

    Attributes:
        windows: int64 [n], sorted.
        lengths: windows of each chain, int64 [chains].
        max_conflicts: the most windows of one clip that start within ``gap`` frames; 1 if none conflict.
        far_pairs: pairs of windows of one chain that do not conflict.
        far_in_runs: far pairs whose two windows are of the same run. An estimate where ``max_windows_per_clip`` leaves
            out windows of some clips: a run may then cross chains.
    """

    def __init__(self, index: WindowIndex, segments: Segments, spacing: Spacing) -> None:
        gap = spacing.gap
        self.windows = np.sort(segments.windows())
        starts = starts_on_one_axis(index, self.windows, gap)
        conflicts = np.arange(len(starts)) - np.searchsorted(starts, starts - gap, side="right")  # with earlier windows
        first = np.flatnonzero(np.diff(starts, prepend=starts[:1] - gap) >= gap)
        self.lengths = np.diff(np.append(first, len(starts)))
        self.max_conflicts = int(conflicts.max()) + 1
        self.far_pairs = int(_pairs(self.lengths).sum() - conflicts.sum())
        self.far_in_runs = int(_pairs(np.maximum(segments.count - spacing.max_conflicts_per_run, 0) + 1).sum())

    def shuffled(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """The windows chain by chain, the chains in random order: int64 [n]."""
        order = shuffled(len(self.lengths), seeds)
        lengths = self.lengths[order]
        shift = (np.cumsum(self.lengths) - self.lengths)[order] - (np.cumsum(lengths) - lengths)
        return self.windows[np.repeat(shift, lengths) + np.arange(len(self.windows))]


class Block:
    """The windows of a block, assigned to steps so that no step holds a conflict.

    ``shape`` is (B rows, K steps); ``segments`` hold B * K windows. Their shuffled chains, end to end, are rotated by a
    random number of windows and then cut into rows. A chain that the rotation divides continues from the end of the
    last row at the beginning of the first; the assignment keeps these windows apart, too.

    Attributes:
        chains: the block's windows in chains.
    """

    def __init__(
        self,
        index: WindowIndex,
        segments: Segments,
        shape: tuple[int, int],
        spacing: Spacing,
        seeds: np.random.SeedSequence,
    ) -> None:
        num_rows, num_steps = shape
        order, rotation, dealing = seeds.spawn(3)
        self.chains = chains = Chains(index, segments, spacing)
        self._windows = np.roll(chains.shuffled(order), -random_below(num_rows * num_steps, rotation))
        self._dealing = Dealing(self._stretches(num_rows, num_steps, spacing.num_blocks), num_rows, dealing)

    def windows(self, steps: Any, rows: np.ndarray) -> np.ndarray:
        """Window ids of ``rows`` at ``steps``, broadcast: int64. Step 0 is the block's first."""
        return self._windows[self._dealing.positions(steps, rows)]

    def _stretches(self, num_rows: int, num_steps: int, num_blocks: int) -> Stretches:
        chains = self.chains
        wanted = chains.far_pairs - chains.far_in_runs * Fraction(num_blocks - 1, num_blocks)
        return choose_stretches(
            num_steps, chains.max_conflicts, chains.lengths, wanted=wanted / num_steps, num_rows=num_rows
        )


class FreeBlock:
    """A block where runs are single windows and no two windows conflict.

    ``sequence`` has them in random order already, from position ``low`` on, so they need no chains and no groups.
    """

    def __init__(self, sequence: SingleWindows, low: int, num_steps: int, seeds: np.random.SeedSequence) -> None:
        self._sequence, self._low = sequence, low
        self._column = shuffled(num_steps, seeds)  # of each step

    def windows(self, steps: Any, rows: np.ndarray) -> np.ndarray:
        """Window ids of ``rows`` at ``steps``, broadcast: int64. Step 0 is the block's first."""
        return self._sequence.windows(self._low + self._column[steps] + rows * len(self._column))


def max_conflicts_bound(index: WindowIndex, segments: Segments, spacing: Spacing) -> int:
    """Upper bound of ``max_conflicts`` of a block of ``segments``; cheaper than the value.

    A run covers the frames from its first start to ``gap`` frames after its last start. The bound is
    ``max_conflicts_per_run`` times the most runs of one clip that cover the same frame.
    """
    clip, begin = index.locate(segments.first)
    end = index.locate(segments.first + (segments.count - 1) * segments.distance)[1]
    clip_begin = clip * (spacing.gap + int(end.max()) + 1)
    begun = np.sort(clip_begin + begin)
    over = np.searchsorted(np.sort(clip_begin + end + spacing.gap), begun, side="right")
    return spacing.max_conflicts_per_run * int((np.arange(1, len(begun) + 1) - over).max())


def starts_on_one_axis(index: WindowIndex, windows: np.ndarray, gap: int) -> np.ndarray:
    """Starts of sorted ``windows`` on one axis for all clips: int64 [n], rising.

    Starts of different clips lie at least ``gap`` frames apart.
    """
    clip, start = index.locate(windows)
    return np.cumsum(np.diff(clip, prepend=clip[:1]) != 0) * (gap + int(start.max())) + start


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) // 2
