"""EpochPlan: resuming, changing the world size, small data, threads, and what it refuses."""

from __future__ import annotations

import io
import json
import threading
import warnings
from typing import Any

import numpy as np
import pytest

from cltt import EpochPlan, WindowIndex
from cltt.errors import SettingsError
from cltt.sampling.runs import ShuffledRuns
from tests.helpers.obvious import count_overlaps

LENGTHS = [90, 0, 150, 61, 200]


def make_plan(**changed: Any) -> EpochPlan:
    names = ("window_size", "frame_step", "window_stride", "clips", "short_clip_windows", "shuffle_seed")
    window = {name: changed.pop(name) for name in names if name in changed}
    index = WindowIndex(changed.pop("lengths", LENGTHS), **{"window_size": 3, "frame_step": 4, **window})
    return EpochPlan(index, **{"batch_size": 12, "seed": 7, "epoch": 2, **changed})


def all_batches(plan: EpochPlan) -> np.ndarray:
    return np.stack([plan.batch(step) for step in range(len(plan))])


# ---- state -----------------------------------------------------------------------------------------------------------
def test_a_state_is_small_and_passes_through_json_and_torch() -> None:
    torch = pytest.importorskip("torch")
    state = make_plan().state_dict(5)
    assert json.loads(json.dumps(state)) == state
    assert len(json.dumps(state)) < 500
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == state
    assert {key: state[key] for key in ("version", "seed", "epoch", "step")} == {
        "version": 2, "seed": 7, "epoch": 2, "step": 5,
    }  # fmt: skip


def test_resuming_at_every_step_gives_the_rest_of_the_epoch() -> None:
    whole = all_batches(make_plan())
    for stop in range(len(whole) + 1):
        state = make_plan().state_dict(stop)
        plan = make_plan(seed=state["seed"], epoch=state["epoch"])
        plan.check_state(state)
        rest = [plan.batch(step) for step in range(state["step"], len(plan))]
        np.testing.assert_array_equal(np.array(rest).reshape(-1, 12), whole[stop:])


def test_a_state_of_another_epoch_or_step_is_the_same_order() -> None:
    plan = make_plan()
    plan.check_state(make_plan(epoch=9).state_dict(len(plan)))
    plan.check_state(make_plan(depth=128, run=10).state_dict())  # the resolved values count, not how they were given


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": 8}, ["seed is 8 and was 7"]),
        ({"batch_size": 24}, ["batch_size is 24 and was 12"]),
        ({"window_size": 2}, ["window_size is 2 and was 3", "run is 5 and was 10"]),
        ({"frame_step": 5, "window_stride": 2}, ["frame_step is 5 and was 4", "window_stride is 2 and was 1"]),
        ({"min_gap": 3}, ["min_gap is 3 and was 0"]),
        ({"depth": 64}, ["depth is 64 and was 128"]),
        ({"run": 5}, ["run is 5 and was 10"]),
        ({"frame_step": (1, 4)}, ["frame_step is 1-4 and was 4", "run is 20 and was 10"]),
        ({"clips_per_block": 3}, ["clips_per_block is 3 and was 0"]),
        ({"short_clip_windows": 2}, ["short_clip_windows is 2 and was 0"]),
        ({"shuffle_seed": 2}, ["shuffle_seed is 2 and was None"]),
        ({"lengths": [90, 0, 150, 61, 201]}, ["the clips and their lengths"]),
        ({"clips": [0, 2, 3]}, ["the clips and their lengths"]),
    ],
)
def test_each_difference_is_named_in_one_sentence(changed: dict[str, Any], told: list[str]) -> None:
    state = make_plan().state_dict()
    with pytest.raises(SettingsError) as caught:
        make_plan(**changed).check_state(state)
    message = str(caught.value)
    assert all(part in message for part in told)
    assert message.count(" and was ") == len(told)
    assert "\n" not in message


def test_a_state_that_was_saved_without_clips_per_block_had_none() -> None:
    state = make_plan().state_dict()
    del state["clips_per_block"]
    make_plan().check_state(state)
    with pytest.raises(SettingsError, match="clips_per_block is 2 and was 0"):
        make_plan(clips_per_block=2).check_state(state)


def test_a_damaged_state_is_refused() -> None:
    plan = make_plan()
    state = plan.state_dict()
    with pytest.raises(SettingsError, match=r"version 99.*version 2"):
        plan.check_state({**state, "version": 99})
    with pytest.raises(SettingsError, match="lacks depth"):
        plan.check_state({key: value for key, value in state.items() if key != "depth"})
    with pytest.raises(SettingsError, match="step is 1000"):
        plan.check_state({**state, "step": 1000})
    with pytest.raises(SettingsError, match="step is -1"):
        plan.state_dict(-1)


def test_a_state_of_the_first_release_is_refused_with_the_version_that_goes_on() -> None:
    old = {
        "version": 1, "epoch": 2, "step": 0, "seed": 7, "batch_size": 12, "window_size": 3, "frame_step": 4,
        "window_stride": 1, "max_windows_per_clip": 0, "min_gap": 0, "depth": 128, "run": 32, "data_hash": "",
    }  # fmt: skip
    with pytest.raises(SettingsError, match=r"order of an epoch has changed.*go on with cltt 0\.1\.0") as caught:
        make_plan().check_state(old)
    assert "\n" not in str(caught.value)


def test_the_order_is_the_one_that_saved_runs_were_made_with() -> None:
    """Fails where the order changes: then raise STATE_VERSION, so that old states are refused, and take new numbers."""
    assert make_plan().batch(0).tolist() == GOLDEN_RUNS
    assert make_plan(run=4, depth=10).batch(20).tolist() == GOLDEN_BLOCKS
    assert make_plan(run=1, window_stride=9).batch(1).tolist() == GOLDEN_SINGLES
    assert make_plan(clips_per_block=1, depth=10).batch(3).tolist() == GOLDEN_GROUPS
    assert make_plan(frame_step=(1, 4)).frames([0, 200]).tolist() == GOLDEN_STEPS
    assert make_plan(shuffle_seed=5).index.frames([0, 100]).tolist() == GOLDEN_SHUFFLE


GOLDEN_RUNS = [4, 291, 393, 331, 447, 254, 40, 201, 114, 212, 159, 61]
GOLDEN_BLOCKS = [73, 24, 327, 302, 442, 278, 190, 386, 340, 129, 152, 215]
GOLDEN_SINGLES = [53, 9, 33, 45, 1, 50, 46, 44, 8, 27, 26, 21]
GOLDEN_GROUPS = [147, 454, 123, 96, 165, 431, 222, 179, 360, 380, 301, 199]
GOLDEN_STEPS = [[0, 2, 4], [208, 209, 210]]
GOLDEN_SHUFFLE = [[49, 31, 69], [235, 193, 159]]


def test_a_step_costs_its_block_wherever_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, asked = make_plan(depth=12, run=5), []
    segments = ShuffledRuns.segments
    monkeypatch.setattr(ShuffledRuns, "segments", lambda self, *span: asked.append(span) or segments(self, *span))
    steps = [plan.block_steps(block)[-1] for block in (0, plan.num_blocks // 2, plan.num_blocks - 1)]
    for step in steps:
        plan.batch(step)
    assert plan.num_blocks == 3
    assert [high - low for low, high in asked] == [12 * len(plan.block_steps(plan.block_of(step))) for step in steps]


# ---- ranks -----------------------------------------------------------------------------------------------------------
def test_changing_the_world_size_in_mid_epoch_goes_on_with_the_same_batches() -> None:
    whole = all_batches(make_plan())
    step, taken = 0, []
    for world_size, stop in [(1, 5), (4, 11), (12, 12), (3, 20), (2, len(whole))]:
        plans = [make_plan() for _ in range(world_size)]  # every rank builds its own
        for plan in plans:
            plan.check_state(make_plan().state_dict(step))
        while step < stop:
            rows = [plan.batch(step, rank=rank, world_size=world_size) for rank, plan in enumerate(plans)]
            taken.append(np.concatenate(rows))
            step += 1
    np.testing.assert_array_equal(taken, whole)


def test_threads_see_what_one_thread_sees() -> None:
    plan, alone = make_plan(depth=4), make_plan(depth=4)
    expected = [(alone.batch(step), alone.fresh_frames(step)) for step in range(len(alone))]
    errors: list[str] = []

    def walk(seed: int) -> None:
        for step in np.random.default_rng(seed).permutation(len(plan)).tolist():
            same = (plan.batch(step) == expected[step][0]).all()
            if not same or plan.fresh_frames(step).tolist() != expected[step][1].tolist():
                errors.append(f"step {step}")

    threads = [threading.Thread(target=walk, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_what_a_caller_does_to_an_answer_does_not_change_the_next() -> None:
    plan = make_plan()
    expected = plan.batch(3).tolist(), plan.fresh_frames(3).tolist(), plan.block_frames(0).tolist()
    for answer in (plan.batch(3), plan.fresh_frames(3), plan.block_frames(0)):
        answer[:] = -1
    assert expected == (plan.batch(3).tolist(), plan.fresh_frames(3).tolist(), plan.block_frames(0).tolist())


# ---- small data ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [32, 128, 256, 1000])
@pytest.mark.parametrize(("step", "conflict"), [(2, 9), (10, 41)])
def test_twenty_clips_of_72_frames(batch_size: int, step: int, conflict: int) -> None:
    index = WindowIndex([72] * 20, 5, step)
    if batch_size > len(index):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}, but there are only {len(index)} windows"):
            EpochPlan(index, batch_size)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = EpochPlan(index, batch_size)
        batches = all_batches(plan)
    clip, start = index.locate(batches)
    overlaps = sum(count_overlaps(c, s, index.span) for c, s in zip(clip, start, strict=True))
    assert len(plan) == len(index) // batch_size
    assert plan.overlaps == overlaps
    fits = len(plan) >= min(conflict, int(index.windows_per_clip.max()))
    assert (overlaps == 0) == fits
    assert [
        str(warning.message) for warning in caught if "some batches hold windows of one clip" in str(warning.message)
    ] == [str(warning.message) for warning in caught]
    assert len(caught) == (0 if fits else 1)
    assert all(warning.filename == __file__ for warning in caught)  # points at who made the plan


@pytest.mark.parametrize("lengths", [[500], [3, 40, 0, 500, 11]])
def test_one_clip_with_windows(lengths: list[int]) -> None:
    """One clip: at least span steps are needed to keep its windows apart, and 460 windows give them up to B = 11."""
    index = WindowIndex(lengths, 5, 10)
    plan = EpochPlan(index, 11)
    clip, start = index.locate(all_batches(plan))
    assert plan.overlaps == 0
    assert set(clip.ravel()) == {lengths.index(500)}
    assert min(np.diff(np.sort(row)).min() for row in start) >= index.span
    with pytest.warns(UserWarning, match="takes 41"):
        assert EpochPlan(index, 12).overlaps > 0


def test_one_batch_of_everything_is_every_window() -> None:
    index = WindowIndex([60, 60], 5, 10, 50)
    assert sorted(EpochPlan(index, 2).batch(0)) == [0, 1]
    assert EpochPlan(WindowIndex([41], 5, 10), 1).batch(0).tolist() == [0]


def test_limited_windows_far_apart_do_not_count_as_close() -> None:
    """100 windows spread over 10,000 frames stand 100 apart: no batch needs to keep neighbours out."""
    index = WindowIndex([10_000] * 3, 5, 10, 1, 100)
    plan = EpochPlan(index, 150)
    assert plan.overlaps == 0
    assert plan.run == 1
    clip, start = index.locate(all_batches(plan))
    assert sum(count_overlaps(c, s, 41) for c, s in zip(clip, start, strict=True)) == 0
    with pytest.warns(UserWarning):
        assert EpochPlan(index, 150, min_gap=300).overlaps > 0


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"batch_size": 2.5}, "batch_size is 2.5; it must be a whole number"),
        ({"seed": -1}, "seed is -1; it must be from 0 to 18446744073709551615"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"epoch": -3}, "epoch is -3"),
        ({"min_gap": -1}, "min_gap is -1"),
        ({"depth": 0}, "depth is 0"),
        ({"run": 0}, "run is 0"),
        ({"clips_per_block": -1}, "clips_per_block is -1"),
        ({"batch_size": 2000}, "there are only 469 windows"),
    ],
)
def test_values_that_cannot_work_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(**changed)


def test_steps_blocks_and_ranks_outside_are_refused() -> None:
    plan = make_plan()
    for step in (-1, len(plan), 10**9):
        for call in (plan.batch, plan.fresh_frames, plan.block_of):
            with pytest.raises(IndexError, match=f"run from 0 to {len(plan) - 1}"):
                call(step)
    for block in (-1, plan.num_blocks):
        with pytest.raises(IndexError, match="blocks run from 0"):
            plan.block_frames(block)
    with pytest.raises(ValueError, match="batch_size 12 cannot be shared evenly by 5 ranks"):
        plan.batch(0, world_size=5)
    with pytest.raises(ValueError, match="rank is 3; it must be from 0 to 2"):
        plan.fresh_frames(0, rank=3, world_size=3)
