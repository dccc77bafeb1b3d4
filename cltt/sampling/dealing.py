"""Which step each place of a block goes to, so that what stands close together never meets and the rest meets freely.

A block of B*K windows stands in B rows of K places, and every step takes one place of every row. Windows of a clip
that could disturb each other stand less than d places apart (d: the block's crowd), also across the end of a row.

- A row is cut into q stretches of m = K//q places, or m+1, with m >= d.
- The places of a stretch fall into groups of up to m-d+1 neighbours. Equal groups of different stretches are d places
  apart or more, whichever of their places are compared.
- A group owns as many steps as it has places in a row, and each row deals its places of a group to these steps at
  random, one each.
- So that windows of one row can meet, too, each stretch is first moved to a random row among some neighbours. A rank
  takes whole sets of such neighbours where it can, and so keeps whole runs.

Two windows of one step are then of the same group, but of different stretches: d places apart or more.

Example: two rows (B=2) of three places (K=3), d=2, hence one stretch a row of two groups, the places 0, 1 and 2:

    places    a b | c      rows dealt    b a | c      steps    0: b e
              d e | f                    e d | f               1: a d
                                                               2: c f

a and d may meet, three places apart; c and d, neighbours, belong to different groups and never do.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from cltt.sampling.permutation import shuffled, shuffled_in_groups

# Rows that exchange stretches: at least 4 and about 8, in a number of sets that world sizes of 2, 4 and 8 divide.
_LEAST_NEIGHBOURS, _NEIGHBOURS, _SETS = 4, 8, 8
# How far windows of a chain may meet more rarely than wanted for the sake of wide groups.
TOLERANCE = Fraction(1, 10)
_PARTS = 64  # shares are counted in 64ths, so in whole numbers


@dataclass(frozen=True)
class Stretches:
    """How a row of ``num_steps`` places is cut for a ``crowd``: ``count`` stretches of ``size`` places or one more."""

    num_steps: int
    crowd: int
    count: int

    @property
    def size(self) -> int:
        return self.num_steps // self.count

    @property
    def groups(self) -> int:
        """Groups of a stretch: as few as keep the same group of two stretches ``crowd`` places apart."""
        return -(-self.size // max(1, self.size - self.crowd + 1))

    def of_places(self) -> tuple[np.ndarray, np.ndarray]:
        """Stretch and group of each place of a row: int64 [num_steps] each. The longer stretches come first, and their
        last place belongs to the last group."""
        longer = self.num_steps - self.size * self.count
        sizes = self.size + (np.arange(self.count) < longer)
        stretch = np.repeat(np.arange(self.count), sizes)
        place = np.arange(self.num_steps) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return stretch, np.minimum(place * self.groups // self.size, self.groups - 1)

    def meetings(self, pairs: np.ndarray, neighbours: int) -> Fraction:
        """How many of the ``pairs`` meet, on average: ``pairs[D]`` of them stand D places apart, int64 [most + 1].

        Two places D apart are equally often at each place of a row: that they are of the same group falls off linearly
        around each multiple of the stretch, and then each of the group's steps is as likely. Two stretches that were
        moved among ``neighbours`` rows came to one row with one chance in so many, and then do not meet.
        """
        width = -(-self.size // self.groups)
        apart = np.arange(len(pairs))
        stretches, beyond = np.divmod(apart * self.count, self.num_steps)  # beyond: in parts of a place
        in_one_set = np.maximum(_PARTS - apart * _PARTS // (neighbours * self.num_steps), 0)
        met = lost = 0
        for number, away in ((stretches, beyond), (stretches + 1, self.num_steps - beyond)):
            weight = pairs * np.maximum(width * self.count - away, 0) * (number > 0)
            met += int(weight.sum())
            lost += int((weight * in_one_set)[number % self.count > 0].sum())
        return (met - Fraction(lost, neighbours * _PARTS)) / (width * self.count) ** 2


def choose_stretches(num_steps: int, crowd: int, chains: np.ndarray, *, wanted: Fraction, num_rows: int) -> Stretches:
    """The fewest stretches with which windows of a chain meet as often as wanted, to within a tenth; else the nearest.

    Long stretches have wide groups, so that other pairs meet in each epoch, but keep all windows of a chain apart;
    short ones let them meet, but only at distances near a multiple of the stretch. ``chains`` are the numbers of
    windows of the chains, ``wanted`` is how many pairs of one chain should meet in the block. All is counted in whole
    numbers, so that every machine takes the same.
    """
    pairs = _pairs_by_distance(chains)
    neighbours = num_rows // _number_of_sets(num_rows)
    best, least = Stretches(num_steps, crowd, 1), None
    for count in range(1, max(1, num_steps // crowd) + 1):
        tried = Stretches(num_steps, crowd, count)
        met = tried.meetings(pairs, neighbours)
        missing = abs(met - wanted)
        if least is None or missing < least:
            best, least = tried, missing
        if missing <= wanted * TOLERANCE or met >= wanted:
            break
    return best


class Dealing:
    """Which place of the block each row takes at each step."""

    def __init__(self, stretches: Stretches, num_rows: int, seeds: np.random.SeedSequence) -> None:
        moves, turns, steps = seeds.spawn(3)
        self._stretch, group = stretches.of_places()
        sets = np.arange(num_rows) * _number_of_sets(num_rows) // num_rows
        self._source_row = shuffled_in_groups(sets, stretches.count, moves).astype(np.int32)  # [stretch, row]
        self._place = shuffled_in_groups(group, num_rows, turns).astype(np.int32)  # [row, K]
        self._slot = shuffled(stretches.num_steps, steps)

    def places(self, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Places that ``rows`` take at ``steps``, counted row by row: int64, the two broadcast together."""
        place = self._place[rows, self._slot[steps]]
        return self._source_row[self._stretch[place], rows] * len(self._slot) + place


def _number_of_sets(num_rows: int) -> int:
    power_of_two = 1 << (max(1, num_rows // _LEAST_NEIGHBOURS).bit_length() - 1)
    return min(power_of_two, _SETS * max(1, num_rows // (_SETS * _NEIGHBOURS)))


def _pairs_by_distance(chains: np.ndarray) -> np.ndarray:
    """How many pairs of one chain stand 0, 1, 2, ... places apart: int64 [longest]; none at 0."""
    at_least = np.cumsum(np.bincount(chains)[::-1])[::-1]  # chains of this many windows or more
    pairs = np.append(np.cumsum(at_least[::-1])[::-1][1:], 0)
    pairs[0] = 0
    return pairs
