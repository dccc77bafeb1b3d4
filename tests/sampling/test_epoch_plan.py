"""The guarantees of EpochPlan over random data, settings, seeds and world sizes, each checked the obvious way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cltt import EpochPlan, WindowIndex
from cltt.sampling import epoch_plan
from tests.helpers.obvious import count_overlaps, list_windows

MAX_WINDOWS = 60_000
STEPS = [17, 3, 1, 150, 6, 40, 90, 400]


@dataclass(frozen=True)
class Case:
    """One drawn data set, its window settings, and arguments of a plan; the windows come from a list of them all."""

    lengths: tuple[int, ...]
    window: tuple[int, int, int, int]  # size, step, stride, limit
    batch_size: int
    world_size: int
    options: tuple[tuple[str, Any], ...]

    @cached_property
    def listed(self) -> np.ndarray:
        """(clip, start) of every window [N, 2]."""
        return np.array(list_windows(self.lengths, *self.window), dtype=np.int64)

    @cached_property
    def frames(self) -> np.ndarray:
        """Frame ids of every window [N, T]."""
        size, step = self.window[:2]
        begins = np.concatenate([[0], np.cumsum(self.lengths)])
        return (begins[self.listed[:, 0]] + self.listed[:, 1])[:, None] + np.arange(size) * step

    @property
    def gap(self) -> int:
        return (self.window[0] - 1) * self.window[1] + 1 + int(dict(self.options).get("min_gap", 0))

    @property
    def always_apart(self) -> bool:
        """Whether the data allow batches free of overlap, by the rule as it is written down."""
        conflict = -(-self.gap // self.window[2])
        most = np.bincount(self.listed[:, 0]).max()
        return len(self.listed) // self.batch_size >= min(conflict, most)

    def plan(self, **changed: Any) -> EpochPlan:
        return EpochPlan(WindowIndex(self.lengths, *self.window), self.batch_size, **{**dict(self.options), **changed})

    @cached_property
    def made(self) -> EpochPlan:
        return self.plan()

    @cached_property
    def batches(self) -> np.ndarray:
        """All batches [S, B]."""
        return np.stack([self.made.batch(step) for step in range(len(self.made))])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size, step, stride = draw(st.integers(2, 16)), draw(st.integers(1, 50)), draw(st.integers(1, 50))
    span = (size - 1) * step + 1
    length = st.integers(0, 2 * span + 100) | st.integers(span, span + 100 * stride)
    lengths = draw(st.lists(length, min_size=draw(st.integers(0, 20)), max_size=20))
    lengths.append(draw(st.integers(span, span + 300)))
    if draw(st.integers(0, 9)) == 5:
        lengths.append(100_000)
    lengths = draw(st.permutations(lengths))
    limit = draw(st.sampled_from([0, 0, 0, 1, 2, 7, 60]))
    windows = len(list_windows(lengths, size, step, stride, limit))
    if windows > MAX_WINDOWS:
        limit, windows = 60, len(list_windows(lengths, size, step, stride, 60))
    batch_size = min(512, -(-windows // draw(st.sampled_from(STEPS))))
    world_size = draw(st.integers(1, min(16, batch_size)))
    options = {
        "seed": draw(st.integers(0, 2**64 - 1)),
        "epoch": draw(st.integers(0, 1000)),
        "min_gap": draw(st.sampled_from([0, 0, 1, 30])),
        "depth": draw(st.none() | st.integers(1, 100)),
        "run": draw(st.none() | st.integers(1, 40)),
    }
    window = (size, step, stride, limit)
    return Case(tuple(lengths), window, batch_size - batch_size % world_size, world_size, tuple(options.items()))


def check_each_window_at_most_once(case: Case) -> None:
    assert len(case.made) == len(case.listed) // case.batch_size
    taken = case.batches.ravel()
    assert len(np.unique(taken)) == len(taken) == len(case.listed) - len(case.listed) % case.batch_size
    assert taken.min() >= 0
    assert taken.max() < len(case.listed)


def check_windows_of_a_clip_keep_their_distance(case: Case) -> None:
    found = sum(count_overlaps(*case.listed[batch].T, case.gap) for batch in case.batches)
    assert case.made.overlaps == found
    if case.always_apart:
        assert found == 0


def check_ranks_take_rows_of_the_same_batch(case: Case) -> None:
    for world_size in (w for w in range(1, 17) if case.batch_size % w == 0):
        for step in {0, len(case.made) // 2, len(case.made) - 1}:
            rows = [case.made.batch(step, rank=rank, world_size=world_size) for rank in range(world_size)]
            assert {len(row) for row in rows} == {case.batch_size // world_size}
            np.testing.assert_array_equal(np.concatenate(rows), case.batches[step])


def check_any_step_comes_alone_and_in_any_order(case: Case) -> None:
    again = case.plan(depth=case.made.depth, run=case.made.run)
    order = np.random.default_rng(case.batch_size).permutation(len(case.made))[:40]
    for step in order:
        np.testing.assert_array_equal(again.batch(int(step)), case.batches[step])


def rank_parts(case: Case) -> Iterator[tuple[int, int, np.ndarray]]:
    """(block, rank, its windows [K, b]) for every block and rank."""
    share = case.batch_size // case.world_size
    for block in range(case.made.num_blocks):
        steps = case.made.block_steps(block)
        for rank in range(case.world_size):
            yield block, rank, case.batches[steps.start : steps.stop, rank * share : (rank + 1) * share]


def check_blocks_share_the_steps_evenly(case: Case) -> None:
    plan = case.made
    steps = [plan.block_steps(block) for block in range(plan.num_blocks)]
    assert [step for block in steps for step in block] == list(range(len(plan)))
    assert [plan.block_of(step) for step in range(len(plan))] == [b for b, block in enumerate(steps) for _ in block]
    assert plan.num_blocks == max(1, len(plan) // plan.depth)
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


def check_a_block_comes_as_a_whole(case: Case) -> None:
    for block, rank, windows in rank_parts(case):
        found = case.made.block_windows(block, rank=rank, world_size=case.world_size)
        np.testing.assert_array_equal(found, windows)


def check_runs_stay_together(case: Case) -> None:
    """Only the ends of the epoch, of a block, and of a rank's part of a block cut a run."""
    if case.made.run == 1:
        return
    first_of_clip = np.searchsorted(case.listed[:, 0], case.listed[:, 0])
    in_clip = np.arange(len(case.listed)) - first_of_clip
    run_of = np.cumsum(in_clip % case.made.run == 0) - 1
    pieces = 0
    for _, _, windows in rank_parts(case):
        ids = np.sort(windows.ravel())
        continues = (np.diff(ids) == 1) & (np.diff(run_of[ids]) == 0)
        pieces += len(ids) - int(continues.sum())
    runs = len(np.unique(run_of[case.batches.ravel()]))
    between_ranks = case.world_size if case.world_size > 1 else 0
    assert pieces <= runs + case.made.num_blocks * (1 + between_ranks)


def check_frames_are_fresh_once_a_block(case: Case) -> None:
    where = {"world_size": case.world_size}
    most = dict.fromkeys(range(case.world_size), 0)
    for block, rank, windows in rank_parts(case):
        seen = np.empty(0, dtype=np.int64)
        for step, ids in zip(case.made.block_steps(block), windows, strict=True):
            expected = np.setdiff1d(case.frames[ids], seen)
            np.testing.assert_array_equal(case.made.fresh_frames(step, rank=rank, **where), expected)
            seen = np.concatenate([seen, expected])
        np.testing.assert_array_equal(case.made.block_frames(block, rank=rank, **where), np.sort(seen))
        most[rank] = max(most[rank], len(seen))
    assert most == {rank: case.made.frames_per_block(rank, case.world_size) for rank in most}


def check_large_data_get_an_upper_bound(case: Case) -> None:
    exact = [case.made.frames_per_block(rank, case.world_size) for rank in range(case.world_size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_plan, "EXACT_FRAMES", 0)
        bounds = [case.made.frames_per_block(rank, case.world_size) for rank in range(case.world_size)]
    most_windows = max(windows.size for *_, windows in rank_parts(case))
    for frames, bound in zip(exact, bounds, strict=True):
        assert frames <= bound <= most_windows * case.window[0]


def check_depth_and_run_follow_the_rule(case: Case) -> None:
    conflict = -(-case.gap // case.window[2])
    most = int(np.bincount(case.listed[:, 0]).max())
    plan = case.plan(depth=None, run=None)
    assert plan.depth == max(128, conflict)
    if case.window[3] == 0:
        assert plan.run == (1 if conflict == 1 else plan.depth // 4)
        assert case.plan(depth=1).depth == min(conflict, most)
    assert case.plan(depth=1, run=3).run == 3


CHECKS: list[Callable[[Case], None]] = [check for name, check in list(globals().items()) if name.startswith("check_")]
QUICK = settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
DEEP = settings(QUICK, max_examples=300)
RARE_WARNING = pytest.mark.filterwarnings("ignore:.*keeping windows of a clip")


@RARE_WARNING
@pytest.mark.parametrize("check", CHECKS)
@QUICK
@given(case=cases())
def test_guarantee(check: Callable[[Case], None], case: Case) -> None:
    check(case)


@RARE_WARNING
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@DEEP
@given(case=cases())
def test_guarantee_deeper(check: Callable[[Case], None], case: Case) -> None:
    check(case)


def epoch_batches(plan: EpochPlan) -> np.ndarray:
    return np.stack([plan.batch(step) for step in range(len(plan))])


@pytest.mark.parametrize("run", [1, 6])
def test_what_is_left_out_is_drawn_anew_each_epoch(run: int) -> None:
    index = WindowIndex([40, 35, 30], 2, 1)
    missing = np.zeros(len(index), dtype=int)
    for epoch in range(1000):
        plan = EpochPlan(index, 10, epoch=epoch, depth=4, run=run)
        missing[np.setdiff1d(np.arange(len(index)), epoch_batches(plan))] += 1
    mean = 1000 * (len(index) % 10) / len(index)
    assert missing.sum() == 1000 * (len(index) % 10)
    assert abs(missing - mean).max() < 5 * mean**0.5


def test_seeds_and_epochs_are_mixed_not_added_or_multiplied() -> None:
    index = WindowIndex([400, 500], 3, 2)
    first = {
        (seed, epoch): tuple(EpochPlan(index, 16, seed=seed, epoch=epoch).batch(0))
        for seed in [*range(12), 2**32, 2**33, 2**64 - 1]
        for epoch in range(12)
    }
    assert len(set(first.values())) == len(first)


def test_no_window_has_a_favourite_part_of_the_epoch() -> None:
    """Over seeds, the mean step of every window is the middle of the epoch."""
    index = WindowIndex([60] * 6, 3, 2)
    steps = np.full((200, len(index)), np.nan)
    for seed in range(200):
        batches = epoch_batches(EpochPlan(index, 6, seed=seed, depth=14, run=4))
        steps[seed, batches] = np.arange(len(batches))[:, None]
    middle, spread = (len(batches) - 1) / 2, len(batches) / 12**0.5
    assert abs(np.nanmean(steps, axis=0) - middle).max() < 5 * spread / 200**0.5


@pytest.mark.parametrize(("window", "run"), [((5, 10, 1), 32), ((5, 2, 1), 32), ((5, 2, 1), 8), ((16, 1, 4), 16)])
def test_decodes_a_window_are_those_of_its_run(window: tuple[int, int, int], run: int) -> None:
    index = WindowIndex([1600] * 100, *window)
    plan = EpochPlan(index, 64, depth=128, run=run)
    decodes = sum(len(plan.block_frames(block)) for block in range(plan.num_blocks)) / (len(plan) * 64)
    size, step, stride = window
    frames = {start * stride + k * step for start in range(run) for k in range(size)}
    assert 0.8 * len(frames) / run <= decodes <= 1.08 * len(frames) / run <= size
    if stride == 1 and run >= step:
        assert len(frames) == run - 1 + index.span


@pytest.mark.parametrize(("lengths", "batch_size"), [([300] * 200, 64), ([1000] * 300, 256), ([3000] * 12, 32)])
@pytest.mark.parametrize("world_size", [1, 4])
def test_default_order_decodes_little_more_than_each_frame_once(
    lengths: list[int], batch_size: int, world_size: int
) -> None:
    plan = EpochPlan(WindowIndex(lengths, 5, 2, 1), batch_size)
    blocks = [
        plan.block_frames(block, rank=rank, world_size=world_size)
        for block in range(plan.num_blocks)
        for rank in range(world_size)
    ]
    assert sum(map(len, blocks)) / len(np.unique(np.concatenate(blocks))) <= 1.35


def test_windows_that_cannot_meet_share_batches_freely() -> None:
    index = WindowIndex([500] * 4, 3, 2, 5)
    plan = EpochPlan(index, 40)
    assert plan.run == 1
    together = [np.abs(np.subtract.outer(batch, batch)) == 1 for batch in epoch_batches(plan)]
    assert sum(pair.sum() for pair in together) > 0


def test_runs_of_one_window_mix_like_a_uniform_shuffle() -> None:
    index = WindowIndex([40] * 50, 2, 1, 2)
    ids = np.concatenate([epoch_batches(EpochPlan(index, 100, seed=seed)).ravel() for seed in range(20)])
    steps = np.tile(np.arange(len(index) // 100).repeat(100), 20)
    clip_by_step = np.histogram2d(index.locate(ids)[0], steps, bins=(50, len(index) // 100))[0]
    expected = len(ids) / clip_by_step.size
    chi_square = ((clip_by_step - expected) ** 2 / expected).sum()
    freedom = clip_by_step.size
    assert abs(chi_square - freedom) < 6 * (2 * freedom) ** 0.5


def test_the_same_windows_do_not_meet_every_epoch() -> None:
    """Two clips in one block leave little to shuffle; still, who met once meets again little more than by chance."""
    index = WindowIndex([400, 500], 3, 2)

    def meetings(epoch: int) -> np.ndarray:
        met = np.zeros((len(index), len(index)), dtype=bool)
        for batch in epoch_batches(EpochPlan(index, 16, epoch=epoch)):
            met[np.ix_(batch, batch)] = True
        np.fill_diagonal(met, False)
        return met

    met = [meetings(epoch) for epoch in range(12)]
    again = np.mean([(now & before).sum() / before.sum() for before, now in pairwise(met)])
    assert again < 1.5 * 15 / (len(index) - 1)
