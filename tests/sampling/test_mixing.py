"""What the order is for: few decodes, blocks no longer than need be, and batches that are mixed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from benchmarks import order_figures
from cltt import EpochPlan, WindowIndex


def epoch_batches(plan: EpochPlan) -> np.ndarray:
    return np.concatenate([plan.block_windows(block) for block in range(plan.num_blocks)])


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


# ---- decodes and memory ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("window", "run"), [((5, 10, 1), 32), ((5, 2, 1), 32), ((5, 90, 1), 8), ((16, 1, 4), 16), ((5, 30, 20), 12)]
)
def test_decodes_a_window_are_those_of_its_run(window: tuple[int, int, int], run: int) -> None:
    """A run of n windows costs T - s frames and s more a window, s = lcm(step, stride)/step."""
    size, step, stride = window
    index = WindowIndex([(size - 1) * step + 1 + 95 * np.lcm(step, stride)] * 400, *window)
    plan = EpochPlan(index, 64, depth=128, run=run)
    decodes = sum(len(plan.block_frames(block)) for block in range(plan.num_blocks)) / (len(plan) * 64)
    new = np.lcm(step, stride) // step
    expected = new + (size - new) / (96 / -(-96 // run))
    assert 0.9 * expected <= decodes <= 1.05 * expected <= size


@pytest.mark.parametrize(
    ("window", "batch_size", "most", "gigabytes"),
    [
        ((5, 10, 1), 64, 1.25, 4),
        ((5, 2, 1), 64, 1.25, 4),
        ((5, 90, 1), 64, 1.4, 5),
        ((2, 900, 1), 128, 1.4, 9),
        ((5, 300, 1), 64, 1.6, 6),
        ((16, 30, 1), 32, 2.0, 5),
    ],
    ids=str,
)
def test_a_frame_is_decoded_about_once_at_any_step(
    window: tuple[int, int, int], batch_size: int, most: float, gigabytes: float
) -> None:
    plan = EpochPlan(WindowIndex(order_figures.clip_lengths(200), *window), batch_size)
    block = plan.frames_per_block()
    assert block / (batch_size * len(plan) / plan.num_blocks) <= most
    assert 2 * block * 224 * 224 * 3 / 1e9 <= gigabytes
    assert len(plan) / plan.num_blocks < 2 * plan.depth


@pytest.mark.parametrize(("lengths", "batch_size"), [([300] * 200, 64), ([1000] * 300, 256), ([3000] * 12, 32)])
@pytest.mark.parametrize("world_size", [4, 8])
def test_ranks_together_decode_little_more_than_one_would(lengths: list[int], batch_size: int, world_size: int) -> None:
    plan = EpochPlan(WindowIndex(lengths, 5, 10, 1), batch_size)
    blocks = range(plan.num_blocks)
    alone = sum(len(plan.block_frames(block)) for block in blocks)
    shared = sum(
        len(plan.block_frames(block, rank=rank, world_size=world_size))
        for block in blocks
        for rank in range(world_size)
    )
    assert shared <= 1.05 * alone


# ---- batches ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [(5, 2, 1), (5, 10, 1), (5, 90, 1)], ids=str)
@pytest.mark.parametrize("num_clips", [6, 12, 40])
def test_far_windows_of_a_clip_meet_as_often_as_any(num_clips: int, window: tuple[int, int, int]) -> None:
    plan = EpochPlan(WindowIndex(order_figures.clip_lengths(num_clips), *window), 64)
    assert 0.8 <= order_figures.far_pairs_rate(plan) <= 1.2


@pytest.mark.parametrize("window", [(5, 2, 1), (5, 10, 1)], ids=str)
@pytest.mark.parametrize("num_clips", [6, 12])
def test_far_windows_meet_as_often_where_a_block_holds_whole_clips(
    num_clips: int, window: tuple[int, int, int]
) -> None:
    index = WindowIndex([500] * num_clips, *window)
    rates = [order_figures.far_pairs_rate(EpochPlan(index, 64, epoch=epoch)) for epoch in range(4)]
    assert 0.8 <= np.mean(rates) <= 1.2


@pytest.mark.slow
@pytest.mark.parametrize("window", [(5, 2, 1), (5, 10, 1), (5, 90, 1)], ids=str)
@pytest.mark.parametrize("num_clips", [200, 2000])
def test_far_windows_of_a_clip_meet_as_often_as_any_in_many_clips(num_clips: int, window: tuple[int, int, int]) -> None:
    plan = EpochPlan(WindowIndex(order_figures.clip_lengths(num_clips), *window), 64)
    assert 0.8 <= order_figures.far_pairs_rate(plan) <= 1.2


def test_few_windows_overlap_with_the_batch_before() -> None:
    plan = EpochPlan(WindowIndex([9000] * 100), 64)
    assert order_figures.overlap_with_batch_before(plan.index, epoch_batches(plan)) <= 0.13


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


@pytest.mark.parametrize(("num_clips", "window"), [(6, (5, 2, 1)), (12, (5, 2, 1)), (12, (5, 10, 1))], ids=str)
def test_pairs_of_a_clip_change_between_epochs(num_clips: int, window: tuple[int, int, int]) -> None:
    """One block holds whole clips, so the chains are the same in every epoch; the assignment to steps must vary."""
    plan = EpochPlan(WindowIndex([500] * num_clips, *window), 64)
    assert plan.num_blocks == 1
    assert order_figures.met_again(plan) < 1.5


# ---- drawn steps, few clips ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "most"), [(2, 1.35), (5, 2.6)])
def test_windows_of_drawn_steps_share_frames(size: int, most: float) -> None:
    plan = EpochPlan(WindowIndex([9000] * 200, size, (1, 15)), 64)
    blocks = range(0, plan.num_blocks, 10)
    decodes = [len(plan.block_frames(block)) / (64 * len(plan.block_steps(block))) for block in blocks]
    assert plan.run == 20
    assert np.mean(decodes) <= most


def test_drawn_steps_are_uniform() -> None:
    plan = EpochPlan(WindowIndex([30_000], 2, (3, 7)), 64)
    steps = np.diff(plan.frames(np.arange(len(plan.index))), axis=1).ravel()
    counts = np.bincount(steps, minlength=9)
    assert counts[:3].sum() == counts[8:].sum() == 0
    assert abs(counts[3:8] - len(steps) / 5).max() < 5 * (len(steps) / 5) ** 0.5
    later = np.diff(plan.at_epoch(1).frames(np.arange(len(plan.index))), axis=1).ravel()
    assert abs(np.mean(steps == later) - 1 / 5) < 0.02


def test_blocks_of_few_clips_hold_more_moments_of_each() -> None:
    index = WindowIndex([3000] * 40, 5, 10)
    rates = []
    for clips in (0, 10, 2):
        plan = EpochPlan(index, 64, clips_per_block=clips)
        held = [len(np.unique(index.locate(plan.block_windows(block))[0])) for block in range(plan.num_blocks)]
        assert max(held) <= (2 * clips or 40)
        assert plan.overlaps == 0
        rates.append(order_figures.far_pairs_rate(plan))
    assert 0.8 < rates[0] < 1.2 and 2 * rates[0] < rates[1] and 2 * rates[1] < rates[2]


def test_groups_of_clips_are_drawn_anew_each_epoch() -> None:
    index = WindowIndex([400] * 12, 3, 2)
    plans = [EpochPlan(index, 16, epoch=epoch, clips_per_block=2, depth=20) for epoch in range(20)]
    first = {tuple(np.unique(index.locate(plan.block_windows(0))[0]).tolist()) for plan in plans}
    assert len(first) > 10
