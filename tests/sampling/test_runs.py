"""Runs and their shuffled row, against runs listed one by one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cltt import WindowIndex
from cltt.sampling.permutation import seed_sequence
from cltt.sampling.runs import RunTable, ShuffledRuns, SingleWindows


@st.composite
def indexes(draw: st.DrawFn) -> WindowIndex:
    size, step, stride = draw(st.integers(2, 8)), draw(st.integers(1, 20)), draw(st.integers(1, 6))
    span = (size - 1) * step + 1
    lengths = [*draw(st.lists(st.integers(0, span + 400), max_size=9)), span + draw(st.integers(0, 300))]
    return WindowIndex(lengths, size, step, stride, draw(st.sampled_from([0, 0, 0, 5, 40])))


def list_runs(index: WindowIndex, run_length: int) -> list[list[int]]:
    """The windows of every run: each phase of a clip cut into as few parts as can be, as equal as can be."""
    runs = []
    for k, distance in enumerate(index.sharing_distance.tolist()):
        first, stop = index.first_window[k : k + 2].tolist()
        for phase in range(first, min(first + (distance or stop), stop)):
            windows = list(range(phase, stop, distance or stop))
            parts = -(-len(windows) // run_length)
            bounds = [part * len(windows) // parts for part in range(parts + 1)]
            runs += [windows[a:b] for a, b in pairwise(bounds)]
    return runs


@settings(max_examples=150, deadline=None)
@given(indexes(), st.integers(1, 30))
def test_the_table_holds_the_runs_of_the_list(index: WindowIndex, run_length: int) -> None:
    table, listed = RunTable(index, run_length), list_runs(index, run_length)
    assert len(table) == len(listed)
    runs = np.arange(len(table))
    segments = table.segments(runs, table.clip_of(runs))
    found = np.split(segments.windows(), np.cumsum(segments.count)[:-1])
    assert sorted(part.tolist() for part in found) == sorted(listed)
    assert table.lengths().tolist() == segments.count.tolist()
    assert max(map(len, listed)) <= run_length


@settings(max_examples=150, deadline=None)
@given(indexes(), st.integers(1, 30), st.integers(0, 99), st.data())
def test_any_stretch_of_the_row_is_part_of_the_whole(
    index: WindowIndex, run_length: int, seed: int, data: st.DataObject
) -> None:
    seeds = [seed_sequence(seed, 0, purpose) for purpose in (0, 1)]
    layout = ShuffledRuns(index, run_length, *seeds) if run_length > 1 else SingleWindows(len(index), seeds[0])
    row = layout.segments(0, len(index)).windows()
    assert sorted(row.tolist()) == list(range(len(index)))
    low = data.draw(st.integers(0, len(index) - 1))
    high = data.draw(st.integers(low + 1, len(index)))
    assert layout.segments(low, high).windows().tolist() == row[low:high].tolist()


def test_runs_are_shuffled_and_the_row_begins_anywhere() -> None:
    index = WindowIndex([220] * 12, 5, 10)
    rows = [ShuffledRuns(index, 9, *seed_sequence(seed).spawn(2)).segments(0, len(index)) for seed in range(400)]
    first = np.array([row.first[0] for row in rows])
    assert abs(first.mean() - len(index) / 2) < 5 * len(index) / 12**0.5 / 400**0.5
    cut = np.array([row.count[0] for row in rows])
    assert len(set(cut.tolist())) == 9  # a run is cut open at each of its windows
    assert len({tuple(row.first[1:6].tolist()) for row in rows}) == 400
