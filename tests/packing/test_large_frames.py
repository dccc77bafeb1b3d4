"""What frames larger than a network needs cost is said once, at the build, with what would be saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.errors import SettingsError
from cltt.packing.plan import PLAN, Plan
from cltt.shards import layout
from tests.helpers import data, video

LINE = re.compile(
    r"frames are large for --image-size 224 \((\d+x\d+)\): --resize-short 256 would store (\S+) ([kM])B "
    r"instead of (\S+) ([kM])B and decode a frame in (\d+)% of the time, by a sample of 8 frames; another set "
    r"would be built for it, so stop this build \(Ctrl-C\) first\n"
)
UNITS = {"k": 1e3, "M": 1e6}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = data.make_clips(tmp_path / "root", {"a": 5, "b": 6}, height=480, width=640)
    return data.make_clips(root, {"c": 1})


@pytest.mark.parametrize("options", [{}, {"dry_run": True}, {"task": "0/1"}])
def test_a_line_says_what_smaller_frames_would_save(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    build_shards(root, tmp_path / "out", **options)
    said = capsys.readouterr().out
    found = LINE.fullmatch(said)
    assert found and found[1] == "640x480", said
    build_shards(root, tmp_path / "small", resize_short=256)
    assert capsys.readouterr().out == "", "nothing is left to be saved"
    build_shards(root, tmp_path / "full")
    sizes = [sum(map(len, ShardDataset(tmp_path / name).read(range(12)))) for name in ("small", "full")]
    assert float(found[2]) * UNITS[found[3]] == pytest.approx(sizes[0], rel=0.1)
    assert float(found[4]) * UNITS[found[5]] == pytest.approx(sizes[1], rel=0.1)
    assert 0 < int(found[6]) < 100


def test_a_build_that_goes_on_does_not_say_it_again(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_shards(root, tmp_path / "out", task="0/2")
    capsys.readouterr()
    build_shards(root, tmp_path / "out")
    assert "frames are large" not in capsys.readouterr().out


def test_frames_of_videos_count_as_they_would_be_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "root").mkdir()
    video.write_video(tmp_path / "root/walk.mp4", 12, draw=lambda k: video.picture(k, 128, 96))
    build_shards(tmp_path / "root", tmp_path / "none", image_size=64, dry_run=True)
    said = capsys.readouterr().out
    assert said.startswith("frames are large for --image-size 64 (128x96): --resize-short 73 would store"), said


def test_frames_little_larger_than_asked_for_cost_nothing_to_speak_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 4}, height=72, width=90)
    (root / "a/frame_000004.jpg").write_bytes(b"no picture")
    build_shards(root, tmp_path / "none", image_size=49, dry_run=True)
    assert capsys.readouterr().out == ""
    build_shards(root, tmp_path / "none", image_size=48, dry_run=True)
    assert "--image-size 48 (90x72): --resize-short 55 would" in capsys.readouterr().out
    with pytest.raises(SettingsError, match="image_size is 1; it must be from 16 to 8192"):
        build_shards(root, tmp_path / "none", image_size=1)


def test_one_huge_frame_does_not_stand_for_all(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
    assert cv2.imwrite(str(root / "c/frame_000000.jpg"), noise)
    build_shards(root, tmp_path / "out", dry_run=True)
    said = capsys.readouterr().out
    found = LINE.fullmatch(said)
    assert found, said
    sizes = [path.stat().st_size for path in root.rglob("*.jpg")]
    assert float(found[4]) * UNITS[found[5]] == pytest.approx(12 * sorted(sizes)[6], rel=0.2)


def test_sampled_frames_of_videos_are_those_where_decoding_begins(tmp_path: Path) -> None:
    """Others would be decoded from there on; of long groups of pictures that takes longer than a short build."""
    data.make_clips(tmp_path / "root", {"a": 9})
    video.write_video(tmp_path / "root/b.mp4", 90, gop=45, b_frames=0)
    build_shards(tmp_path / "root", tmp_path / "out", task="0/2")
    plan = Plan(tmp_path / "out" / layout.BUILD / PLAN)
    sampled = [(frame.key, number_in(frame.name)) for frame in plan.sample(8)]
    assert sampled == [(b"b.mp4", 0), (b"b.mp4", 45), (b"a", 8)]


def number_in(name: bytes) -> int:
    return int(re.findall(rb"\d+", name)[-1])
