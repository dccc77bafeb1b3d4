"""The guarantees of EpochPlan over random data, settings, seeds and world sizes, each checked the obvious way."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from cltt.sampling import epoch_plan
from tests.helpers.obvious import count_conflicts, count_overlaps
from tests.helpers.plans import Case, cases

Check = Callable[[Case], None]
CHECKS: list[Check] = []


def guarantee(check: Check) -> Check:
    CHECKS.append(check)
    return check


@guarantee
def each_window_comes_at_most_once(case: Case) -> None:
    assert len(case.made) == len(case.listed) // case.batch_size
    taken = case.batches.ravel()
    assert len(np.unique(taken)) == len(taken) == len(case.listed) - len(case.listed) % case.batch_size
    assert taken.min() >= 0
    assert taken.max() < len(case.listed)


@guarantee
def windows_of_a_clip_keep_their_distance(case: Case) -> None:
    found = sum(count_overlaps(*case.listed[batch].T, case.gap) for batch in case.batches)
    assert case.made.overlaps == found
    if len(case.made) >= case.needed:
        assert found == 0


@guarantee
def ranks_take_rows_of_the_same_batch(case: Case) -> None:
    for world_size in case.world_sizes:
        for step in {0, len(case.made) // 2, len(case.made) - 1}:
            rows = [case.made.batch(step, rank=rank, world_size=world_size) for rank in range(world_size)]
            assert {len(row) for row in rows} == {case.batch_size // world_size}
            np.testing.assert_array_equal(np.concatenate(rows), case.batches[step])


@guarantee
def any_step_comes_alone_and_in_any_order(case: Case) -> None:
    again = case.plan(depth=case.made.depth, run=case.made.run)
    order = np.random.default_rng(case.batch_size).permutation(len(case.made))[:40]
    for step in order:
        np.testing.assert_array_equal(again.batch(int(step)), case.batches[step])


@guarantee
def another_epoch_is_that_of_a_plan_made_for_it(case: Case) -> None:
    other = case.plan(epoch=0).at_epoch(case.made.epoch)
    assert other.state_dict() == case.made.state_dict()
    np.testing.assert_array_equal(other.batch(len(other) - 1), case.batches[-1])


@guarantee
def blocks_share_the_steps_evenly(case: Case) -> None:
    plan = case.made
    steps = [plan.block_steps(block) for block in range(plan.num_blocks)]
    assert [step for block in steps for step in block] == list(range(len(plan)))
    assert [plan.block_of(step) for step in range(len(plan))] == [b for b, block in enumerate(steps) for _ in block]
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


@guarantee
def blocks_are_as_long_as_asked_or_as_conflicts_need(case: Case) -> None:
    plan = case.made
    most = max(1, len(plan) // plan.depth)
    fewest = max(1, len(plan) // max(plan.depth, case.needed))
    halvings = {max(fewest, most // 2**k) for k in range(most.bit_length() + 1)}
    assert plan.num_blocks in halvings or plan.clips_per_block
    if len(plan) >= case.needed:
        for block in range(plan.num_blocks):
            steps = plan.block_steps(block)
            windows = case.batches[steps.start : steps.stop].ravel()
            assert count_conflicts(*case.listed[windows].T, case.gap) <= len(steps)


@guarantee
def blocks_hold_few_clips_unless_conflicts_need_longer_ones(case: Case) -> None:
    plan, clip = case.made, case.listed[:, 0]
    if not plan.clips_per_block:
        return
    held = [len(np.unique(clip[windows])) for _, _, windows in case.rank_parts(1)]
    if max(held) <= 2 * plan.clips_per_block or plan.num_blocks == len(plan):
        return
    sequence = plan._sequence.segments(0, len(case.listed)).windows()

    def fits(num_blocks: int) -> bool:
        bounds = [block * len(plan) // num_blocks * case.batch_size for block in range(num_blocks + 1)]
        blocks = [case.listed[sequence[low:high]].T for low, high in pairwise(bounds)]
        return all(count_conflicts(*block, case.gap) <= len(plan) // num_blocks for block in blocks)

    finer = [min(2 * plan.num_blocks + odd, len(plan)) for odd in (0, 1)]
    assert not all(fits(num_blocks) for num_blocks in finer)


@guarantee
def steps_are_drawn_for_each_window_and_epoch(case: Case) -> None:
    plan, ids = case.made, np.arange(len(case.listed))
    frames, starts = plan.frames(ids), np.cumsum([0, *case.lengths])[case.listed[:, 0]] + case.listed[:, 1]
    np.testing.assert_array_equal(plan.places(ids), frames)
    np.testing.assert_array_equal(frames[:, 0], starts)
    if case.window[0] == 1:
        return
    steps = np.diff(frames, axis=1)
    assert (steps == steps[:, :1]).all()
    assert steps.min() >= case.shortest and steps.max() <= case.window[1]
    np.testing.assert_array_equal(case.plan().frames(ids[::-1]), frames[::-1])
    if not case.draws_steps:
        np.testing.assert_array_equal(plan.index.frames(ids), frames)
    elif len(ids) > 100:
        assert (plan.at_epoch(plan.epoch + 1).frames(ids) != frames).any()
        assert (case.plan(seed=plan.seed ^ 1).frames(ids) != frames).any()


@guarantee
def a_block_comes_as_a_whole(case: Case) -> None:
    world_size = case.world_sizes[len(case.world_sizes) // 2]
    for block, rank, windows in case.rank_parts(world_size):
        found = case.made.block_windows(block, rank=rank, world_size=world_size)
        np.testing.assert_array_equal(found, windows)


@guarantee
def runs_stay_together(case: Case) -> None:
    """Only the ends of the epoch and of a block cut a run of windows that share frames."""
    if case.window[3] or case.short or not case.sharing:
        return
    clip, in_clip = (
        case.listed[:, 0],
        np.arange(len(case.listed)) - np.searchsorted(case.listed[:, 0], case.listed[:, 0]),
    )
    phases = {(c, j % case.sharing): 0 for c, j in zip(clip.tolist(), in_clip.tolist(), strict=True)}
    for c, j in zip(clip.tolist(), in_clip.tolist(), strict=True):
        phases[c, j % case.sharing] += 1
    runs = sum(-(-length // case.made.run) for length in phases.values())
    pieces = 0
    for _, _, windows in case.rank_parts(1):
        held = set(windows.ravel().tolist())
        pieces += sum(not (w - case.sharing in held and in_clip[w] >= case.sharing) for w in held)
    assert pieces <= runs + case.made.num_blocks + 1


@guarantee
def frames_are_fresh_once_a_block(case: Case) -> None:
    world_size = next(size for size in reversed(case.world_sizes) if size <= 16)
    most = dict.fromkeys(range(world_size), 0)
    for block, rank, windows in case.rank_parts(world_size):
        where = {"rank": rank, "world_size": world_size}
        seen: set[int] = set()
        for step, ids in zip(case.made.block_steps(block), windows, strict=True):
            expected = set(case.frames[ids].ravel().tolist()) - seen
            assert case.made.fresh_frames(step, **where).tolist() == sorted(expected)
            seen |= expected
        assert case.made.block_frames(block, **where).tolist() == sorted(seen)
        most[rank] = max(most[rank], len(seen))
    assert most == {rank: case.made.frames_per_block(rank, world_size) for rank in most}


@guarantee
def few_blocks_of_large_data_get_a_close_upper_bound(case: Case) -> None:
    exact = case.made.frames_per_block()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch_plan, "EXACT_FRAMES", 0)
        bound = case.made.frames_per_block()
    if case.made.run == 1:
        longest = -(-len(case.made) // case.made.num_blocks)
        assert exact <= bound <= longest * case.batch_size * case.window[0]
    elif case.made.num_blocks <= epoch_plan.SAMPLED_BLOCKS:
        assert exact <= bound <= exact + exact // 64


@guarantee
def depth_and_run_follow_the_rule(case: Case) -> None:
    plan = case.plan(depth=None, run=None)
    assert plan.depth == 128
    if not (case.window[3] or case.short):
        shares = case.sharing and np.bincount(case.listed[:, 0]).max() > case.sharing
        default = 20 if case.draws_steps else min(5 * (case.window[0] - 1), 32)
        assert plan.run == (default if shares else 1)
        assert case.plan(run=3).run == (3 if shares else 1)
    assert case.plan(depth=1).depth == 1


QUICK = settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
DEEP = settings(QUICK, max_examples=300)
RARE_WARNING = pytest.mark.filterwarnings("ignore:.*to keep windows of a clip")


@RARE_WARNING
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@QUICK
@given(case=cases())
def test_guarantee(check: Check, case: Case) -> None:
    check(case)


@RARE_WARNING
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@DEEP
@given(case=cases())
def test_guarantee_deeper(check: Check, case: Case) -> None:
    check(case)
