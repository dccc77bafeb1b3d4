"""WindowIndex against a list of all windows, at its limits, and where it must refuse."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltt import WindowIndex
from cltt.errors import SettingsError
from tests.helpers.obvious import list_frames, list_windows

LENGTHS = st.lists(st.one_of(st.integers(0, 300), st.sampled_from([0, 1, 5_000, 100_000])), min_size=1, max_size=12)


def index_or_none(*args: object, **kwargs: object) -> WindowIndex | None:
    try:
        return WindowIndex(*args, **kwargs)  # type: ignore[arg-type]
    except SettingsError:
        return None


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 16), st.integers(0, 50), st.integers(1, 50), st.integers(0, 40), st.data())
def test_windows_are_those_of_the_list(
    lengths: list[int], size: int, step: int, stride: int, limit: int, data: st.DataObject
) -> None:
    clips = data.draw(st.none() | st.permutations(range(len(lengths))).map(lambda ids: ids[: len(ids) // 2 + 1]))
    short = data.draw(st.sampled_from([0, 0, 1, 2, 9]))
    expected = list_windows(lengths, size, step, stride, limit, clips, short)
    index = index_or_none(lengths, size, step, stride, limit, clips=clips, short_clip_windows=short)
    if index is None:
        assert not expected
        return
    assert len(index) == len(expected)
    clip, start = index.locate(np.arange(len(index)))
    np.testing.assert_array_equal(np.stack([clip, start], axis=1), expected)
    for i in data.draw(st.lists(st.integers(0, len(index) - 1), max_size=8)):
        assert index.frames(i).tolist() == index.places(i).tolist() == list_frames(lengths, expected[i], size, step)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 30), st.integers(1, 30), st.sampled_from([0, 0, 3, 20]))
def test_windows_share_most_frames_with_the_one_that_is_named(
    lengths: list[int], size: int, step: int, stride: int, limit: int
) -> None:
    lengths = [min(length, 300) for length in lengths]
    index = index_or_none(lengths, size, step, stride, limit)
    if index is None:
        return
    frames = [set(row) for row in index.frames(np.arange(len(index))).tolist()]
    for distance, first, stop in zip(
        index.sharing_distance, index.first_window[:-1], index.first_window[1:], strict=True
    ):
        shared = [max((len(frames[i] & frames[first]), -i) for i in range(first + 1, stop))] if stop - first > 1 else []
        if limit and stop - first == limit:  # thinned out: neighbours, if any share
            assert distance == 1 or all(not frames[i] & frames[i + 1] for i in range(first, stop - 1))
        else:
            assert distance == (-shared[0][1] - first if shared and shared[0][0] else 0)


def test_one_frame_many_times_where_the_step_is_zero() -> None:
    index = WindowIndex([3, 0, 2], 4, 0)
    assert index.span == 1
    assert index.frames(np.arange(len(index))).tolist() == [[k] * 4 for k in range(5)]
    assert not index.sharing_distance.any()


def test_short_clips_give_one_window_from_their_middle() -> None:
    index = WindowIndex([41, 42, 43, 50, 10], 5, 10, short_clip_windows=2)
    assert index.windows_per_clip.tolist() == [1, 1, 3, 10, 0]
    assert index.locate(np.arange(3))[1].tolist() == [0, 1, 0]
    assert len(WindowIndex([41, 42, 43], 5, 10, 1, 2, short_clip_windows=3)) == 3


# ---- shuffled frames -------------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=9), st.integers(0, 2**64 - 1))
def test_a_shuffle_uses_each_frame_of_a_clip_once(lengths: list[int], seed: int) -> None:
    index = index_or_none([*lengths, 7], 1, 1, shuffle_seed=seed)
    assert index is not None
    shuffled = index.frames(np.arange(len(index))).ravel()
    for start, stop in pairwise(index.clip_offsets.tolist()):
        assert sorted(shuffled[start:stop].tolist()) == list(range(start, stop))


def test_windows_are_cut_after_the_shuffle() -> None:
    plain, shuffled = WindowIndex([200, 90], 5, 10), WindowIndex([200, 90], 5, 10, shuffle_seed=3)
    ids = np.arange(len(plain))
    np.testing.assert_array_equal(shuffled.places(ids), plain.frames(ids))
    by_place = dict(zip(shuffled.places(ids).ravel().tolist(), shuffled.frames(ids).ravel().tolist(), strict=True))
    assert len(set(by_place.values())) == len(by_place)  # a place always holds the same frame
    np.testing.assert_array_equal(np.vectorize(by_place.get)(shuffled.places(ids)), shuffled.frames(ids))
    steps = np.abs(np.diff(shuffled.frames(ids), axis=1))
    assert np.mean(steps == 10) < 0.05
    assert shuffled.frames([[0, 5]]).shape == (1, 2, 5)


def test_a_shuffle_is_of_its_clip_and_seed_alone() -> None:
    """The same in a split as in all clips, another for each seed and each clip of one length."""
    whole, part = (WindowIndex([50, 50, 50], 2, 1, clips=clips, shuffle_seed=1) for clips in (None, [2]))
    assert part.frames(np.arange(49)).tolist() == whole.frames(np.arange(98, 147)).tolist()
    assert (whole.frames(np.arange(49)) + 50 != whole.frames(np.arange(49, 98))).any()
    assert (WindowIndex([50], 2, 1, shuffle_seed=2).frames(np.arange(49)) != whole.frames(np.arange(49))).any()


def test_a_shuffle_has_no_favourite_places() -> None:
    index = [WindowIndex([13], 1, 1, shuffle_seed=seed).frames(np.arange(13)).ravel() for seed in range(2000)]
    counts = np.array([np.bincount(column, minlength=13) for column in np.array(index).T])
    chi_square = ((counts - 2000 / 13) ** 2 / (2000 / 13)).sum()
    assert abs(chi_square - 144) < 6 * (2 * 144) ** 0.5


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 12), st.integers(0, 90))
def test_index_distance_is_the_least_that_keeps_starts_apart(
    lengths: list[int], stride: int, limit: int, frames: int
) -> None:
    index = WindowIndex(lengths, 1, 1, stride, limit)
    for clip, distance in enumerate(index.index_distance(frames)):
        starts = np.array([start for c, start in list_windows(lengths, 1, 1, stride, limit) if c == clip])
        apart = [bool((starts[d:] - starts[:-d] >= frames).all()) for d in range(1, len(starts))]
        assert all(apart[distance - 1 :])
        assert not any(apart[: distance - 1])


def test_shapes_follow_the_ids() -> None:
    index = WindowIndex([50, 60], 3, 2)
    assert index.frames(4).shape == (3,)
    assert index.frames([4]).shape == (1, 3)
    assert index.frames(np.zeros((2, 7), dtype=np.uint16)).shape == (2, 7, 3)
    assert index.frames([]).shape == (0, 3)
    assert index.frames(np.int32(4)).dtype == np.int64
    clip, start = index.locate(np.arange(46, 48).reshape(2, 1))
    assert clip.tolist() == [[1], [1]]
    assert start.tolist() == [[0], [1]]
    assert tuple(map(int, index.locate(0))) == (0, 0)


@pytest.mark.parametrize(
    ("limit", "starts"),
    [(0, [0, 5, 10, 15, 20, 25]), (1, [15]), (2, [0, 25]), (4, [0, 5, 15, 25]), (6, None), (9, None)],
)
def test_limited_windows_are_spread_over_the_clip(limit: int, starts: list[int] | None) -> None:
    index = WindowIndex([30], 3, 2, 5, limit)
    assert index.locate(np.arange(len(index)))[1].tolist() == (starts or [0, 5, 10, 15, 20, 25])


def test_a_memory_map_serves_as_lengths(tmp_path: Path) -> None:
    lengths = np.array([70, 0, 45], dtype=np.int32)
    np.save(tmp_path / "lengths.npy", lengths)
    mapped = WindowIndex(np.load(tmp_path / "lengths.npy", mmap_mode="r"))
    assert mapped.frames(np.arange(len(mapped))).tolist() == WindowIndex(lengths).frames(np.arange(35)).tolist()


@pytest.mark.parametrize("bad", [-1, 35, [0, 35], [[3], [-7]], 2**40])
def test_ids_outside_are_refused(bad: int | list[int]) -> None:
    index = WindowIndex([70, 0, 45])
    for look_up in (index.frames, index.locate):
        with pytest.raises(IndexError, match="ids run from 0 to 34"):
            look_up(bad)
    with pytest.raises(TypeError, match="integers"):
        index.frames(1.0)  # type: ignore[arg-type]


def test_settings_that_no_clip_satisfies_say_what_would_fit() -> None:
    with pytest.raises(SettingsError) as caught:
        WindowIndex([12, 30, 0], 5, 10)
    for part in (
        "spans 41",
        "longest of the 3 clips has 30",
        "largest window_size that fits is 3",
        "frame_step that fits is 7",
    ):
        assert part in str(caught.value)
    assert len(WindowIndex([12, 30, 0], 3, 10)) == 10
    assert len(WindowIndex([12, 30, 0], 5, 7)) == 2
    assert index_or_none([30], 4, 10) is index_or_none([30], 5, 8) is None
    with pytest.raises(SettingsError, match="longest of the 1 clips has 30"):
        WindowIndex([100, 30], 5, 10, clips=[1])
    with pytest.raises(SettingsError, match="no frame_step fits window_size 9"):
        WindowIndex([4], 9, 1)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_no_frames_at_all_are_told_plainly(lengths: list[int]) -> None:
    with pytest.raises(SettingsError, match=r"none of the \d clips has any frame"):
        WindowIndex(lengths)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clip_lengths": [[3]]}, "shape"),
        ({"clip_lengths": [3.5]}, "integers"),
        ({"clip_lengths": [90, -2]}, "-2"),
        ({"clips": [0, 2]}, r"\[2\].*0 to 1"),
        ({"clips": [1, 1]}, "more than once"),
        ({"clips": [True, False]}, "flatnonzero"),
        ({"window_size": 0}, "window_size is 0"),
        ({"frame_step": -1}, "frame_step is -1"),
        ({"short_clip_windows": -1}, "short_clip_windows is -1"),
        ({"shuffle_seed": -1}, "shuffle_seed is -1"),
        ({"shuffle_seed": 2**64}, "it must be from 0 to 18446744073709551615"),
        ({"window_stride": -1}, "window_stride is -1"),
        ({"max_windows_per_clip": -1}, "max_windows_per_clip is -1"),
    ],
)
def test_values_that_cannot_work_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        WindowIndex(**{"clip_lengths": [90, 90], **changed})  # type: ignore[arg-type]


def test_clips_keep_their_frame_ids_and_the_order_given() -> None:
    index = WindowIndex([10, 20, 10], 2, 1, 9, clips=[2, 0])
    assert index.frames(np.arange(len(index))).tolist() == [[30, 31], [0, 1]]
    assert index.num_clips == 2
    assert index.windows_per_clip.tolist() == [1, 1]


def test_memory_does_not_grow_with_the_windows() -> None:
    tracemalloc.start()
    index = WindowIndex([10**12, 50, 10**12], 5, 10)
    index.frames([0, len(index) // 2, len(index) - 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index) == 2 * (10**12 - 40) + 10
    assert peak < 100_000


def test_lookup_holds_where_clips_differ_by_millions() -> None:
    lengths = np.concatenate(
        [np.ones(5_000, dtype=int), [10_000_000], np.zeros(3_000, dtype=int), np.ones(7_000, dtype=int)]
    )
    index = WindowIndex(lengths, 1, 1)
    ids = np.array([0, 4_999, 5_000, 10_004_999, 10_005_000, 10_011_999])
    assert index.locate(ids)[0].tolist() == [0, 4_999, 5_000, 5_000, 8_001, 15_000]
    assert index.locate(ids)[1].tolist() == [0, 0, 0, 9_999_999, 0, 0]


def test_data_hash_follows_lengths_and_clips() -> None:
    same = [WindowIndex([60, 70]), WindowIndex(np.array([60, 70], dtype=np.int32), 2, 3, clips=[0, 1])]
    others = [WindowIndex([70, 60]), WindowIndex([60, 70], clips=[1]), WindowIndex([60, 70, 0])]
    assert same[0].data_hash == same[1].data_hash
    assert len({index.data_hash for index in [same[0], *others]}) == 4


# ---- steps drawn from a range ----------------------------------------------------------------------------------------
def test_a_range_of_steps_counts_windows_by_the_longest() -> None:
    index = WindowIndex([60, 61, 70], 5, (1, 15))
    assert (index.frame_step, index.frame_steps, index.span) == ("1-15", (1, 15), 61)
    assert index.windows_per_clip.tolist() == WindowIndex([60, 61, 70], 5, 15).windows_per_clip.tolist() == [0, 1, 10]
    assert WindowIndex([70], 5, "1-15").settings == index.settings
    assert WindowIndex([70], 5, (4, 4)).frame_step == WindowIndex([70], 5, "4").frame_step == 4
    assert index.sharing_distance.tolist() == [0, 1]
    assert WindowIndex([900], 2, (1, 15), 16).sharing_distance.tolist() == [0]
    for look_up in (index.frames, index.places):
        with pytest.raises(SettingsError, match=r"frame_step is 1-15.*EpochPlan\.frames"):
            look_up(0)
    assert index.frames([1, 2], np.array([1, 15])).tolist() == [[121, 122, 123, 124, 125], [122, 137, 152, 167, 182]]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("5-2", "frame_step is 5-2; in a range A-B, A must be 1 or more and B greater than A"),
        ((0, 3), "A must be 1 or more"),
        ("1-2-3", "it must be a number of frames, or a range such as 1-15"),
        ("1-", "it must be a number"),
        ("ten", "it must be a number"),
        ((1, 2, 3), "it must be a number"),
        ("-3", "frame_step is -3; it must be from 0"),
        ((1, 10**10), "frame_step is 10000000000; it must be from 0"),
        (None, "frame_step is None"),
    ],
)
def test_steps_that_cannot_work_are_refused(step: object, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        WindowIndex([90], 2, step)  # type: ignore[arg-type]
