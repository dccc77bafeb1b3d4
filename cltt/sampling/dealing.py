"""Assigns the positions of a block to steps, so that no step holds windows in conflict.

A block holds B*K windows in B rows of K positions. Every step takes one position of every row. Positions are counted
through the block, row after row, and on from its end to its beginning. Windows in conflict lie less than d positions
apart (d is the block's ``max_conflicts``), also if a row ends between them. The rules:

- Each row is cut into q stretches of m = K//q or m+1 positions, with m >= d. (If K < d, there is one stretch, and
  conflicts may remain: ``EpochPlan.overlaps``.)
- Each stretch is cut into pieces of at most m-d+1 neighbouring positions, all stretches of all rows alike; in a stretch
  of m+1 the last piece has one position more, and may exceed this limit by one. Group g is piece g of every stretch.
  Two positions of one group in different stretches are at least d positions apart.
- A group has as many steps, chosen at random, as it has positions in a whole row, all its stretches together. Each row
  assigns its positions of the group to these steps at random, one position per step.
- Before that, the rows of a small set of neighbouring rows exchange their stretches at random; a stretch keeps its
  place in the row. So two windows that were in one row, in different stretches, can share a step. If the number of
  sets is a multiple of the world size, a rank takes whole sets, and only a run that crosses from the last row of one
  rank into the first row of the next is split between ranks.

Two windows of one step therefore belong to the same group of different stretches and are at least d positions apart.

Example with B=2, K=3, d=2: one stretch per row, with two groups, positions 0-1 and position 2:

    positions    a b | c      after the random assignment    b a | c      steps    0: b e
                 d e | f                                     e d | f               1: a d
                                                                                   2: c f

Windows a and d are three positions apart and can share a step. Windows c and d are neighbours, belong to different
groups and never share a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cltt.sampling.permutation import shuffled, shuffled_in_groups

# Rows in a set: 4 to 16, mostly about 8 (all rows if there are fewer than 4). From 32 rows on, world sizes of 2, 4 and
# 8 divide the number of sets.
_LEAST_ROWS, _ROWS, _SETS = 4, 8, 8
# The fewest stretches are taken with which the number of pairs that share a step is this close to the wanted number.
TOLERANCE = Fraction(1, 10)
# The probability that two stretches lie in one set of rows is counted in 64ths, and as if there were many sets. With a
# single one (B < 8) it is 1, and slightly fewer pairs share a step than is computed.
_PARTS = 64


@dataclass(frozen=True)
class Stretches:
    """Division of a row of ``num_steps`` positions into ``count`` stretches.

    Each has ``size`` positions or one more. Two windows of one step are at least ``max_conflicts`` positions apart.
    """

    num_steps: int
    max_conflicts: int
    count: int

    @property
    def size(self) -> int:
        """Positions of the shortest stretch."""
        return self.num_steps // self.count

    @property
    def groups(self) -> int:
        """Groups per stretch: the fewest of at most ``size - max_conflicts + 1`` positions each."""
        return -(-self.size // max(1, self.size - self.max_conflicts + 1))

    def of_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Stretch and group of each position of a row, int64 [num_steps] each.

        Longer stretches come first. Their last position belongs to the last group.
        """
        longer = self.num_steps - self.size * self.count
        sizes = self.size + (np.arange(self.count) < longer)
        stretch = np.repeat(np.arange(self.count), sizes)
        position = np.arange(self.num_steps) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return stretch, np.minimum(position * self.groups // self.size, self.groups - 1)

    def expected_meetings(self, pairs: np.ndarray, rows_in_set: int) -> Fraction:
        """Of all pairs of windows of one chain, the expected number that share a step.

        Args:
            pairs: int64 [longest chain + 1]; ``pairs[D]`` pairs lie D positions apart.
            rows_in_set: number of rows in a set.

        The probability that two positions D apart are in one group is 1 where D is a multiple of the stretch's length.
        It falls linearly with the distance from that multiple, and is 0 at one group's width. The multiple 0 is left
        out: near it both windows are in one stretch, and windows of one stretch never share a step. A group has
        width * count steps, so two of its positions share a step with probability 1/(width * count). If both stretches
        lie in one set of rows, they move to the same row with probability 1/rows_in_set; then the pair shares no step.
        Stretches with the same number in two rows never move to the same row.
        """
        width = -(-self.size // self.groups)
        apart = np.arange(len(pairs))
        # D lies between two multiples of a stretch's length; away: its distance from each, in units of 1/count
        # positions. lost: of the pairs in one group, those in one set of rows.
        stretches, beyond = np.divmod(apart * self.count, self.num_steps)
        in_one_set = np.maximum(_PARTS - apart * _PARTS // (rows_in_set * self.num_steps), 0)
        met = lost = 0
        for number, away in ((stretches, beyond), (stretches + 1, self.num_steps - beyond)):
            weight = pairs * np.maximum(width * self.count - away, 0) * (number > 0)
            met += int(weight.sum())
            lost += int((weight * in_one_set)[number % self.count > 0].sum())
        return (met - Fraction(lost, rows_in_set * _PARTS)) / (width * self.count) ** 2


def choose_stretches(
    num_steps: int, max_conflicts: int, chain_lengths: np.ndarray, *, wanted: Fraction, num_rows: int
) -> Stretches:
    """The fewest stretches with which about ``wanted`` pairs of windows of one chain share a step.

    About is within a tenth. Numbers are tried from 1 up until one comes that close or exceeds ``wanted``; then the
    closest of those tried is taken. Few stretches have wide groups, so different pairs share a step in each epoch, but
    they keep windows of a short chain apart. Many stretches let windows of a chain share a step, but only at distances
    near a multiple of the stretch, so a pair that shares one does so again in the next epoch far more often than by
    chance (figures: benchmarks/NOTES.md). The arithmetic is exact, so every machine chooses the same.

    Args:
        num_steps: K.
        max_conflicts: d, at least 1.
        chain_lengths: number of windows in each chain, int64 [chains].
        wanted: how many such pairs should share a step, over all chains of the block.
        num_rows: B.
    """
    pairs = _pairs_by_distance(chain_lengths)
    rows_in_set = num_rows // _number_of_sets(num_rows)
    best, least = Stretches(num_steps, max_conflicts, 1), None
    for count in range(1, max(1, num_steps // max_conflicts) + 1):
        tried = Stretches(num_steps, max_conflicts, count)
        met = tried.expected_meetings(pairs, rows_in_set)
        missing = abs(met - wanted)
        if least is None or missing < least:
            best, least = tried, missing
        if missing <= wanted * TOLERANCE or met >= wanted:
            break
    return best


class Dealing:
    """Random assignment of the positions of a block to its steps.

    Args:
        stretches: how rows are divided.
        num_rows: B.
        seeds: random state.
    """

    def __init__(self, stretches: Stretches, num_rows: int, seeds: np.random.SeedSequence) -> None:
        moves, positions, steps = seeds.spawn(3)
        self._stretch, group = stretches.of_positions()
        sets = np.arange(num_rows) * _number_of_sets(num_rows) // num_rows
        self._source_row = shuffled_in_groups(sets, stretches.count, moves).astype(np.int32)  # [stretch, row]
        # [row, column]: the row's positions, each group shuffled; the columns of a group follow each other.
        self._position = shuffled_in_groups(group, num_rows, positions).astype(np.int32)
        self._column = shuffled(stretches.num_steps, steps)  # of each step

    def positions(self, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Positions in the block (0 to B*K-1) of ``rows`` at ``steps``, broadcast: int32."""
        position = self._position[rows, self._column[steps]]
        return self._source_row[self._stretch[position], rows] * len(self._column) + position


def _number_of_sets(num_rows: int) -> int:
    """Number of sets: below 64 rows a power of two, at most 8; from 64 rows on, 8 per full 64 rows."""
    power_of_two = 1 << (max(1, num_rows // _LEAST_ROWS).bit_length() - 1)
    return min(power_of_two, _SETS * max(1, num_rows // (_SETS * _ROWS)))


def _pairs_by_distance(chain_lengths: np.ndarray) -> np.ndarray:
    """Pairs of windows in one chain that lie 0, 1, 2, ... positions apart: int64 [longest chain + 1]; none at 0."""
    at_least = np.cumsum(np.bincount(chain_lengths)[::-1])[::-1]  # chains of this many windows or more
    pairs = np.append(np.cumsum(at_least[::-1])[::-1][1:], 0)
    pairs[0] = 0
    return pairs
