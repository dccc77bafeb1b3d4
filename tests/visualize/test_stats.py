"""inspect_windows.py --mode stats: what it counts is what is there."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from cltt.config import WindowSettings
from cltt.shards.dataset import ShardDataset
from cltt.shards.folder import FolderDataset
from cltt.visualize import inspect, stats_page
from cltt.visualize import stats as stats_module
from tests.helpers import data
from tests.helpers.inspecting import LENGTHS, WINDOWS, info, obvious_windows


def obvious_stats(folder: Path) -> dict[str, Any]:
    """Counted file by file."""
    clips = {clip: sorted((folder / clip).glob("[!.]*.jpg")) for clip in sorted(LENGTHS)}
    contents = {clip: [path.read_bytes() for path in paths] for clip, paths in clips.items()}
    repeats = {clip: sum(a == b for a, b in pairwise(frames)) for clip, frames in contents.items()}
    return {
        "clips": len(clips),
        "frames": sum(map(len, clips.values())),
        "bytes": sum(len(frame) for frames in contents.values() for frame in frames),
        "repeats": {clip: count for clip, count in repeats.items() if count},
    }


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_stats_count_what_is_there(
    shards: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(stats_module, "PIECE", piece)
    expected = obvious_stats(folder)
    for flag, path in (("--shards", shards), ("--root-dir", folder)):
        stats = info(capsys, flag, path, *WINDOWS, "--mode", "stats")
        assert {key: stats[key] for key in ("clips", "frames", "bytes")} == {
            key: expected[key] for key in ("clips", "frames", "bytes")
        }
        assert {item["clip"]: item["pairs"] for item in stats["duplicates"]["most"]} == expected["repeats"]
        assert stats["duplicates"]["pairs"] == 3
        assert stats["frame_sizes"] == [{"width": 64, "height": 48, "frames": 127}]
        assert stats["windows"] == len(obvious_windows())
        assert stats["too_short"] == {"clips": 1, "frames": 3, "examples": [{"clip": "b/two", "frames": 3}]}
        assert sum(stats["clip_lengths"]["histogram"]["clips"]) == 5
        assert [stats["clip_lengths"][key] for key in ("shortest", "median", "longest")] == [3, 28, 41]


def test_windows_at_other_settings_are_counted_one_by_one() -> None:
    lengths = np.array([0, 1, 9, 30, 100])
    table = stats_module._windows_at(lengths, WindowSettings(window_size=4, frame_step=7, window_stride=3))
    assert 7 in table["frame_steps"] and 3 in table["window_strides"]
    for step, row in zip(table["frame_steps"], table["windows"], strict=True):
        for stride, count in zip(table["window_strides"], row, strict=True):
            assert count == sum(len(range(0, length - 3 * step, stride)) for length in lengths.tolist())


def test_stats_of_splits_and_labels_add_up(
    shards: Path, split_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = info(capsys, "--shards", shards, *WINDOWS, "--mode", "stats")["labels"]
    assert {item["name"]: (item["clips"], item["frames"]) for item in labels} == {
        "a": (2, 55),
        "b": (2, 44),
        "c": (1, 28),
    }
    stats = info(capsys, "--shards", split_shards, *WINDOWS, "--mode", "stats")
    for key in ("clips", "frames", "windows"):
        assert sum(item[key] for item in stats["splits"]) == stats[key]
    train = info(capsys, "--shards", split_shards, *WINDOWS, "--mode", "stats", "--split", "train")
    named = {item["name"]: item for item in stats["splits"]}
    assert [train[key] for key in ("clips", "frames", "windows")] == [
        named["train"][key] for key in ("clips", "frames", "windows")
    ]


def test_stats_in_text_and_as_a_page(shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    inspect.main(["--shards", str(shards), *WINDOWS, "--mode", "stats", "--save-path", str(tmp_path / "new" / "s.png")])
    printed = capsys.readouterr().out
    for part in ("5 clips, 127 frames", "64x48 (127)", "b/two (3)", "a/one (3)", "label a: 2 clips", "step \\ stride"):
        assert part in printed
    assert matplotlib.image.imread(tmp_path / "new" / "s.png").shape == (800, 1200, 4)


def test_the_page_of_stats_has_no_empty_panel(shards: Path, split_shards: Path, folder: Path, tmp_path: Path) -> None:
    def titles(dataset: ShardDataset | FolderDataset) -> list[str]:
        figure = stats_page.draw_stats(stats_module.dataset_stats(dataset, WindowSettings()), "t")
        return [axes.get_title(loc="left") for axes in figure.axes][1:]

    always = ["Clip lengths", "Windows at other settings"]  # all frames are of one size
    assert titles(ShardDataset(shards)) == [*always, "Labels (clips)"]
    assert titles(ShardDataset(split_shards)) == [*always, "Splits (clips)"]
    assert titles(FolderDataset(folder)) == always
    other = data.make_clips(shutil.copytree(folder, tmp_path / "sizes"), {"z": 5}, height=16, width=16)
    assert titles(FolderDataset(other)) == [always[0], "Frame sizes (frames)", always[1]]
    figure = stats_page.draw_stats(stats_module.dataset_stats(FolderDataset(folder), WindowSettings()), "t")
    assert "frames of 64x48" in [text.get_text() for text in figure.axes[0].texts]


def test_stats_need_no_window_to_fit(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = info(capsys, "--shards", shards, "--window-size", "60", "--mode", "stats")
    assert stats["windows"] == 0 and stats["too_short"]["frames"] == 127
