"""Frames and times of videos from their packets alone, held to decoding everything, and sampling to its rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cltt.source.video.file import InvalidVideo
from cltt.source.video.kinds import is_video
from cltt.source.video.timeline import BACKWARDS, BEFORE_KEY, DECODED, GAP, PACKETS, Timeline, sample
from tests.helpers import data, video
from tests.helpers.video import timeline

pytest.importorskip("av")
REAL = sorted((data.SHARED / "video").glob("*.*"))


def line_of(times: list[float]) -> Timeline:
    places = np.arange(len(times))
    starts = np.concatenate([[False], np.diff(times) < 0]) if times else np.zeros(0, bool)
    return Timeline("pts", places, 0 * places, np.array(times, np.float64), starts)


def split_at(samples_begin: np.ndarray, frames: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(frames, np.flatnonzero(samples_begin)[1:])]


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_videos_have_the_frames_that_decoding_gives(path: Path) -> None:
    line = timeline(path)
    times, _ = video.decode_all(path)
    assert line.timing == (DECODED if path.suffix == ".avi" else PACKETS)
    assert np.allclose(line.times, times, rtol=0, atol=1e-9)
    for fps in (None, 5.0, 7.3, 60.0):
        samples = sample(line, fps, None)
        assert split_at(samples.begins, samples.frames) == video.obvious_samples(times, fps, None)


@pytest.mark.parametrize("seed", range(40))
def test_sampling_is_the_rule_read_aloud(seed: int) -> None:
    random = np.random.default_rng(seed)
    distances = random.choice([1 / 30, 1 / 25, 0.001, 0.4, 0.51, 3.0], 60, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    times = np.cumsum(distances).tolist()
    for fps in (None, 1.0, 4.0, 5.0, 29.97, 30.0, 120.0):
        for max_gap in (None, 0.2, 1.0):
            samples = sample(line_of(times), fps, max_gap)
            assert split_at(samples.begins, samples.frames) == video.obvious_samples(times, fps, max_gap)
            assert len(samples.notes) == samples.begins.sum() - 1


def test_a_time_base_that_rounds_moves_no_sample() -> None:
    times = [round(k / 30, 3) for k in range(300)]  # milliseconds, as Matroska has them
    samples = sample(line_of(times), 30.0, None)
    assert len(samples.frames) == 300 and np.diff(samples.frames).max() <= 2
    exact = sample(line_of([k / 30 + (1e-7 if k % 2 else -1e-7) for k in range(300)]), 30.0, None)
    assert exact.frames.tolist() == list(range(300))


def test_one_dropped_frame_cuts_nothing_and_a_pause_does() -> None:
    times = [k for k in range(40) if k != 7]  # one frame a second: the default is twice that
    assert sample(line_of(times), None, None).begins.sum() == 1
    samples = sample(line_of([k / 30 for k in range(40) if not 5 < k < 25]), 5.0, None)
    assert samples.begins.sum() == 2 and samples.notes[0].reason == GAP
    assert samples.notes[0].time == pytest.approx(25 / 30)


def test_no_frames_give_no_samples() -> None:
    samples = sample(line_of([]), 5.0, None)
    assert len(samples.frames) == 0 == len(samples.notes)


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_times_count_from_the_first_frame(tmp_path: Path, name: str) -> None:
    path = video.write_video(tmp_path / name, 40, times=lambda k: 8 + k / 30)
    assert timeline(path).times == pytest.approx([k / 30 for k in range(40)], abs=6e-4)


@pytest.mark.parametrize("name", ["even.mp4", "even.mkv"])
def test_a_variable_rate_comes_out_even(tmp_path: Path, name: str) -> None:
    shown = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.09, 80)).tolist()
    line = timeline(video.write_video(tmp_path / name, 80, times=shown.__getitem__))
    taken = line.times[sample(line, 5.0, None).frames]
    ticks = np.arange(len(taken)) / 5
    assert (taken <= ticks + 1e-6).all() and (taken > ticks - 0.1).all()


def test_a_stream_cut_in_before_a_key_frame_loses_its_head(tmp_path: Path) -> None:
    whole = video.write_video(tmp_path / "whole.ts", 60, gop=20).read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole[len(whole) // 8 // 188 * 188 :])
    line = timeline(cut)
    assert len(line.ids) == 40 and [note.reason for note in line.notes] == [BEFORE_KEY]


def test_times_that_run_backwards_begin_a_new_stretch(tmp_path: Path) -> None:
    first = video.write_video(tmp_path / "a.ts", 30).read_bytes()
    (tmp_path / "b.ts").write_bytes(first + video.write_video(tmp_path / "c.ts", 24).read_bytes())
    line = timeline(tmp_path / "b.ts")
    samples = sample(line, None, None)
    assert line.timing == DECODED and len(line.ids) == 54
    assert split_at(samples.begins, samples.frames) == [list(range(30)), list(range(30, 54))]
    assert samples.notes[0].reason == BACKWARDS


def test_packets_without_an_order_of_showing_are_counted(tmp_path: Path) -> None:
    line = timeline(video.write_video(tmp_path / "b.avi", 40, b_frames=2))
    assert line.timing == DECODED and line.times == pytest.approx([k / 30 for k in range(40)])


def test_entries_of_h264_are_clean_pictures_alone(tmp_path: Path) -> None:
    closed = timeline(video.write_video(tmp_path / "closed.mp4", 60, gop=20))
    open_gop = {"x264-params": "open-gop=1:keyint=20:bframes=3"}
    opening = timeline(video.write_video(tmp_path / "open.mkv", 60, options=open_gop))
    refresh = {"x264-params": "intra-refresh=1:keyint=20"}
    refreshed = timeline(video.write_video(tmp_path / "refresh.mp4", 60, options=refresh))
    assert [len(np.unique(line.entries)) for line in (closed, opening, refreshed)] == [3, 3, 1]


def test_what_holds_no_video_says_why(tmp_path: Path) -> None:
    cases = {"sound.mp4": "no video stream", "text.mp4": "cannot be opened", "empty.mkv": "cannot be opened"}
    video.write_sound(tmp_path / "sound.mp4")
    (tmp_path / "text.mp4").write_text("#EXTM3U\n/etc/hostname\n")
    (tmp_path / "empty.mkv").write_bytes(b"")
    for name, reason in cases.items():
        with pytest.raises(InvalidVideo, match=reason):
            timeline(tmp_path / name)


def test_videos_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for name, codec in {"a.mp4": "libx264", "a.mkv": "libx264", "a.avi": "mpeg4", "a.mpg": "mpeg2video"}.items():
        assert is_video(video.write_video(tmp_path / name, 3, codec=codec).read_bytes()[:197]), name
    assert is_video(video.write_video(tmp_path / "a.ts", 3).read_bytes()[:197])
    assert is_video(video.write_video(tmp_path / "a.webm", 3, codec="libvpx-vp9").read_bytes()[:197])
    assert not is_video(b"export const x = 'GG'\n" * 20) and not is_video(b"")
