"""Assigning positions to steps: windows in conflict never share a step, others as often as expected."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltt.sampling import dealing
from cltt.sampling.dealing import Dealing, Stretches, choose_stretches
from cltt.sampling.permutation import seed_sequence


def dealt(stretches: Stretches, num_rows: int, seed: int) -> np.ndarray:
    """Places taken at each step [K, B]."""
    steps = np.arange(stretches.num_steps)
    return Dealing(stretches, num_rows, seed_sequence(seed)).positions(steps[:, None], np.arange(num_rows))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 99), st.data())
def test_positions_of_one_step_lie_max_conflicts_apart(
    num_steps: int, num_rows: int, seed: int, data: st.DataObject
) -> None:
    max_conflicts = data.draw(st.integers(1, num_steps))
    stretches = Stretches(num_steps, max_conflicts, data.draw(st.integers(1, num_steps // max_conflicts)))
    positions = dealt(stretches, num_rows, seed)
    assert sorted(positions.ravel().tolist()) == list(range(num_steps * num_rows))
    ordered = np.sort(positions, axis=1)
    apart = np.diff(ordered, axis=1, append=ordered[:, :1] + positions.size)  # the row is a ring
    assert apart.min() >= max_conflicts


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 300), st.integers(1, 9))
def test_ranks_keep_to_their_own_part_of_the_block(num_steps: int, num_rows: int, count: int) -> None:
    """With four or more rows per rank, ranks take whole sets of rows, so whole stretches of the block."""
    stretches = Stretches(num_steps, 1, min(count, num_steps))
    positions = dealt(stretches, num_rows, 0)
    for world_size in (size for size in (2, 4, 8) if num_rows % size == 0 and num_rows >= 4 * size):
        share = num_rows // world_size
        for rank in range(world_size):
            own = positions[:, rank * share : (rank + 1) * share]
            assert (own // (share * num_steps) == rank).all()


def test_more_positions_than_steps_still_give_every_step_one_of_each_row() -> None:
    """Where the data cannot keep windows apart, the max_conflicts exceeds the steps."""
    positions = dealt(Stretches(5, 9, 1), 4, 0)
    assert (np.sort(positions // 5, axis=1) == np.arange(4)).all()


@pytest.mark.parametrize(("num_steps", "max_conflicts", "count"), [(128, 9, 4), (128, 17, 1), (129, 20, 6), (60, 7, 8)])
def test_meetings_are_foreseen(num_steps: int, max_conflicts: int, count: int) -> None:
    stretches, num_rows, distances = Stretches(num_steps, max_conflicts, count), 64, np.arange(1, 3 * num_steps)
    step_of = np.empty((60, num_steps * num_rows), dtype=int)
    for seed, steps in enumerate(step_of):
        steps[dealt(stretches, num_rows, seed)] = np.arange(num_steps)[:, None]
    met = np.array([(step_of[:, d:] == step_of[:, :-d]).mean() for d in distances])
    pairs = np.zeros(len(distances) + 1, dtype=np.int64)
    pairs[1:] = 1
    foreseen = float(stretches.expected_meetings(pairs, 8))
    assert abs(met.sum() - foreseen) < 0.08 * foreseen
    assert met[: max_conflicts - 1].max() == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 130), st.integers(2, 20), st.lists(st.integers(1, 300), min_size=1, max_size=50), st.integers(0, 9)
)
def test_the_number_of_stretches_is_the_nearest_to_what_is_wanted(
    num_steps: int, max_conflicts: int, lengths: list[int], tenths: int
) -> None:
    chains = np.array(lengths)
    most = sum(n * (n - 1) // 2 for n in lengths)
    wanted = Fraction(most * tenths, 10 * num_steps)
    chosen = choose_stretches(num_steps, max_conflicts, chains, wanted=wanted, num_rows=64)
    pairs = np.zeros(max(lengths) + 1, dtype=np.int64)
    for length in lengths:
        pairs[1:length] += length - np.arange(1, length)
    np.testing.assert_array_equal(dealing._pairs_by_distance(chains), pairs)
    missing = [
        abs(Stretches(num_steps, max_conflicts, count).expected_meetings(pairs, 8) - wanted)
        for count in range(1, chosen.count + 1)
    ]
    assert missing[-1] == min(missing)
    assert all(other > wanted * dealing.TOLERANCE for other in missing[:-1])


def test_the_example_of_the_docstring() -> None:
    """Two rows of three positions, d=2: a and d may meet, c and d never do."""
    met = set()
    for seed in range(200):
        for step in dealt(Stretches(3, 2, 1), 2, seed):
            met.add("".join(sorted("abcdef"[position] for position in step)))
    assert met == {"ad", "ae", "bd", "be", "cf"}
