"""One block of an epoch: its windows in chains, the chains in random order, dealt to steps.

A chain holds windows of one clip in rising order; windows of different chains start ``gap`` frames or more apart, or
lie in different clips. The crowd d of a block is the largest number of its windows that start within ``gap`` frames.
In a chain, windows d or more places apart start ``gap`` frames or more apart: else they and those between them would be
d+1 windows within ``gap`` frames. So a dealing that keeps equal steps d places apart keeps a batch free of overlap.
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
    """What keeps windows of a clip apart.

    Attributes:
        gap: frames that two starts in one batch must lie apart, at least.
        run_crowd: the most windows of one run that start within ``gap`` frames.
        num_blocks: blocks of the epoch. Windows of one run are always in the same, others in one of so many: far
            windows of a run must meet that much more rarely there for all pairs to meet equally often.
    """

    gap: int
    run_crowd: int
    num_blocks: int


class Chains:
    """The windows of ``segments`` by clip and start.

    Attributes:
        windows: int64 [n], sorted.
        lengths: windows of each chain, int64 [chains].
        crowd: the most windows that start within ``gap`` frames.
        far_pairs: pairs of one chain that start ``gap`` frames or more apart.
        far_in_runs: those of them that belong to one run.
    """

    def __init__(self, index: WindowIndex, segments: Segments, spacing: Spacing) -> None:
        gap = spacing.gap
        self.windows = np.sort(segments.windows())
        line = on_one_line(index, self.windows, gap)
        near = np.arange(len(line)) - np.searchsorted(line, line - gap, side="right")  # earlier ones within the gap
        starts = np.flatnonzero(np.diff(line, prepend=line[:1] - gap) >= gap)
        self.lengths = np.diff(np.append(starts, len(line)))
        self.crowd = int(near.max()) + 1
        self.far_pairs = int(_pairs(self.lengths).sum() - near.sum())
        self.far_in_runs = int(_pairs(np.maximum(segments.count - spacing.run_crowd, 0) + 1).sum())

    def shuffled(self, seeds: np.random.SeedSequence) -> np.ndarray:
        """The windows chain by chain, the chains in random order: int64 [n]."""
        order = shuffled(len(self.lengths), seeds)
        lengths = self.lengths[order]
        shift = (np.cumsum(self.lengths) - self.lengths)[order] - (np.cumsum(lengths) - lengths)
        return self.windows[np.repeat(shift, lengths) + np.arange(len(self.windows))]


class Block:
    """The windows of ``segments``, ``num_rows * num_steps`` of them, dealt to steps so that no neighbours meet.

    The chains in random order close to a ring, which is cut open at a random place and folded into rows.

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
        order, cut, dealing = seeds.spawn(3)
        self.chains = chains = Chains(index, segments, spacing)
        self._windows = np.roll(chains.shuffled(order), -random_below(num_rows * num_steps, cut))
        self._dealing = Dealing(self._stretches(num_rows, num_steps, spacing.num_blocks), num_rows, dealing)

    def windows(self, steps: Any, rows: np.ndarray) -> np.ndarray:
        """Window ids of ``rows`` at ``steps`` (counted within the block): int64, the two broadcast together."""
        return self._windows[self._dealing.places(steps, rows)]

    def _stretches(self, num_rows: int, num_steps: int, num_blocks: int) -> Stretches:
        chains = self.chains
        wanted = chains.far_pairs - chains.far_in_runs * Fraction(num_blocks - 1, num_blocks)
        return choose_stretches(num_steps, chains.crowd, chains.lengths, wanted=wanted / num_steps, num_rows=num_rows)


class FreeBlock:
    """A block of windows none of which can disturb another: already in random order, looked up without a table."""

    def __init__(self, layout: SingleWindows, low: int, num_steps: int, seeds: np.random.SeedSequence) -> None:
        self._layout, self._low = layout, low
        self._slot = shuffled(num_steps, seeds)

    def windows(self, steps: Any, rows: np.ndarray) -> np.ndarray:
        """Window ids of ``rows`` at ``steps`` (counted within the block): int64, the two broadcast together."""
        return self._layout.windows(self._low + self._slot[steps] + rows * len(self._slot))


def crowd_bound(index: WindowIndex, segments: Segments, spacing: Spacing) -> int:
    """At least the crowd of a block of ``segments``, from the runs alone: as many times the crowd of a run as runs of
    one clip have windows that start within ``gap`` frames."""
    clip, begin = index.locate(segments.first)
    end = index.locate(segments.first + (segments.count - 1) * segments.distance)[1]
    clips_apart = clip * (spacing.gap + int(end.max()) + 1)
    begun = np.sort(clips_apart + begin)
    over = np.searchsorted(np.sort(clips_apart + end + spacing.gap), begun, side="right")
    return spacing.run_crowd * int((np.arange(1, len(begun) + 1) - over).max())


def on_one_line(index: WindowIndex, windows: np.ndarray, gap: int) -> np.ndarray:
    """Starts of sorted ``windows`` with the clips on one line, ``gap`` frames or more from each other: int64 [n]."""
    clip, start = index.locate(windows)
    return np.cumsum(np.diff(clip, prepend=clip[:1]) != 0) * (gap + int(start.max())) + start


def _pairs(counts: np.ndarray) -> np.ndarray:
    return counts * (counts - 1) // 2
