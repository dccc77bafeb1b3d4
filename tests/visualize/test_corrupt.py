"""inspect_windows.py --mode verify, and pictures of corrupt frames."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cltt import WindowIndex, build_shards
from cltt.errors import FrameError
from cltt.sampling.epoch_windows import EpochWindows
from cltt.shards.dataset import ShardDataset
from cltt.shards.folder import FolderDataset
from cltt.visualize import inspect, views
from cltt.visualize import windows as windows_module
from tests.helpers import data
from tests.helpers.inspecting import SMALL, drawn_frames, info


def flip(shards: Path, dataset: ShardDataset, frame: int) -> None:
    """Flip one bit in the middle of a frame."""
    record = dataset.frame_records([frame])[0]
    with (shards / f"shard-{record['shard']:06d}.tar").open("r+b") as file:
        file.seek(int(record["offset"]) + int(record["size"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def corrupt_shards(folder: Path, tmp_path: Path) -> Path:
    build_shards(folder, tmp_path / "s", workers=1)
    for frame in (4, 70):
        flip(tmp_path / "s", ShardDataset(tmp_path / "s"), frame)
    return tmp_path / "s"


def test_verify_names_every_corrupt_frame(
    shards: Path, corrupt_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert info(capsys, "--shards", shards, "--mode", "verify", "--decode")["damaged"] == []
    assert inspect.main(["--shards", str(corrupt_shards), "--mode", "verify"]) == 1
    reason, *lines, last = capsys.readouterr().out.splitlines()
    dataset = ShardDataset(corrupt_shards)
    named = [f"frame {frame} ({dataset.frame_name(frame)})" for frame in (4, 70)]
    assert lines == [f"  {name}" for name in named]
    assert reason.startswith("2 frames: ") and "shard-000000.tar: CRC mismatch" in reason
    assert last == "127 frames read, 2 damaged"
    assert inspect.main(["--shards", str(corrupt_shards), "--mode", "verify", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["damaged"]
    assert [line.split(":")[0] for line in found] == named


def test_one_corrupt_frame_has_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_shards(folder, tmp_path / "s", workers=1)
    flip(tmp_path / "s", ShardDataset(tmp_path / "s"), 4)
    inspect.main(["--shards", str(tmp_path / "s"), "--mode", "verify"])
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith("frame 4 (a/one/frame_000004.jpg): ") and total == "127 frames read, 1 damaged"


def test_a_cut_off_shard_has_a_line_a_clip_not_a_frame(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_shards(folder, tmp_path / "s", workers=1)
    tar = tmp_path / "s/shard-000000.tar"
    cut = int(ShardDataset(tmp_path / "s").frame_records([40])["offset"][0]) - 512  # before the frame's own header
    os.truncate(tar, cut)
    assert inspect.main(["--shards", str(tmp_path / "s"), "--mode", "verify"]) == 1
    reason, *lines, total = capsys.readouterr().out.splitlines()
    assert reason.startswith(f"87 frames: {tar}: cut off; ")
    ranges = {"a/two": (40, 54), "b/one": (55, 95), "b/two": (96, 98), "c/one": (99, 126)}
    assert lines == [f"  frames {first} to {last} (in clip {clip!r})" for clip, (first, last) in ranges.items()]
    assert total == "127 frames read, 87 damaged"


def test_a_picture_full_of_corrupt_frames_names_some_and_counts_the_others(
    corrupt_shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (corrupt_shards / "shard-000000.tar").unlink()
    argv = ["--shards", str(corrupt_shards), *SMALL, "--mode", "batch", "--batch-size", "8", "--json"]
    inspect.main(argv)
    named = json.loads(capsys.readouterr().out)["damaged"]
    inspect.main([*argv[:-1], "--save-path", str(tmp_path / "b.png")])
    *lines, more, _ = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged")]
    assert lines == [f"damaged: {sentence}" for sentence in named[: len(lines)]] and 5 < len(lines) < len(named)
    assert more == f"damaged: {len(named) - len(lines)} frames more; --json names all"


def test_of_very_many_corrupt_frames_the_first_are_named_and_the_others_counted() -> None:
    errors = [FrameError(2 * k, f"a/{k}.jpg", "CRC mismatch") for k in range(100)]
    reason, *lines, rest = inspect.corrupt_text(errors)
    assert reason == "100 frames: CRC mismatch"
    assert lines == [f"  frame {2 * k} (a/{k}.jpg)" for k in range(len(lines))]
    assert rest == f"  and {100 - len(lines)} frames more; --json names all" and 5 < len(lines) < 50


def test_decoding_finds_what_a_crc_cannot(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture that was broken before it was packed, let through by a build that looks at headers only."""
    root = data.make_clips(tmp_path / "frames", {"a": 12})
    broken = bytearray((root / "a/frame_000005.jpg").read_bytes())
    late = len(broken) * 9 // 10
    broken[late : late + 20] = b"\xff\xd9" * 10
    (root / "a/frame_000005.jpg").write_bytes(bytes(broken))
    build_shards(root, tmp_path / "s", workers=1, verify="header")
    argv = ["--shards", str(tmp_path / "s"), "--mode", "verify"]
    assert inspect.main(argv) == 0
    assert inspect.main([*argv, "--decode"]) == 1
    assert "frame 5 (a/frame_000005.jpg): invalid JPEG" in capsys.readouterr().out


def test_a_corrupt_frame_is_shown_grey_and_named(
    corrupt_shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--shards", corrupt_shards, *SMALL, "--sample-idx", "0", "--save-path", tmp_path / "w.png"]
    shown = info(capsys, *argv)
    assert len(shown["damaged"]) == 1 and "a/one/frame_000004.jpg" in shown["damaged"][0]
    drawn = drawn_frames(tmp_path / "w.png", windows_module.Layout(1, 1, 3, 32), 0)[0]
    assert (drawn[1] == 128).all() and not (drawn[0] == 128).all()
    inspect.main([*map(str, argv), "--augment", "simclr"])
    drawn = drawn_frames(tmp_path / "w.png", windows_module.Layout(1, 2, 3, 32), 1)[0]
    assert (drawn[1] == 128).all() and not (drawn[0] == 128).all()


def test_a_corrupt_frame_comes_with_what_training_does_about_it(
    corrupt_shards: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of shards it takes a neighbour instead; of a folder it builds shards first, without the broken file."""
    argv = [*SMALL, "--sample-idx", "0", "--save-path", str(tmp_path / "w.png")]
    inspect.main(["--shards", str(corrupt_shards), *argv])
    assert "drawn grey; training takes the nearest good frame instead\n" in capsys.readouterr().out
    broken = shutil.copytree(folder, tmp_path / "frames")
    (broken / "a/one/frame_000004.jpg").write_bytes(b"")
    inspect.main(["--root-dir", str(broken), *argv])
    assert "drawn grey; training cuts the clip there\n" in capsys.readouterr().out
    index = WindowIndex([30], 3, 4, 2)
    view = views.view_windows(FolderDataset(broken), EpochWindows(index), np.array([0]), image_size=32)
    texts = [text.get_text() for axes in windows_module.draw_windows(view, "t").axes for text in axes.texts]
    assert "grey: 1 damaged frame; training cuts the clip there" in texts


def test_a_missing_shard_is_reported_not_a_crash(corrupt_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corrupt_shards / "shard-000000.tar").unlink()
    assert inspect.main(["--shards", str(corrupt_shards), "--mode", "verify"]) == 1
    assert "127 frames read, 127 damaged" in capsys.readouterr().out
