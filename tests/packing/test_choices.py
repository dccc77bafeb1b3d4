"""Files chosen by pattern, left out by name, and said to look odd: in a build, and after it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cltt import ShardDataset, build_shards
from cltt.commands import build as command
from cltt.errors import SettingsError
from cltt.shards.folder import FolderDataset
from cltt.shards.verify import verify_shards
from tests.helpers import data
from tests.helpers.folders import assert_same
from tests.helpers.video import write_video


# Frames lie beside their video under its name after https://github.com/healthonrails/annolid/issues/26 and
# https://github.com/YunxuanMao/SAM2-GUI/issues/3.
@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A walk as a video and as frames, and two cameras in one folder."""
    data.make_clips(tmp_path / "root", {"walk": 4, "pair": 4})
    for number, path in enumerate(sorted((tmp_path / "root" / "pair").iterdir())):
        path.rename(path.with_name(f"{number // 2}_{'left' if number % 2 else 'right'}.jpg"))
    write_video(tmp_path / "root" / "walk.mp4", range(5))
    return tmp_path / "root"


def names(dataset: ShardDataset | FolderDataset) -> list[str]:
    return [dataset.frame_name(frame) for frame in range(dataset.num_frames)]


def test_patterns_choose_frames_and_videos_and_are_kept(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    plain = build_shards(root, tmp_path / "plain", workers=1)
    assert [line.partition(":")[0] for line in plain.odd] == [
        "folders beside a video of the same name, perhaps its frames",
        "folders with names of several kinds, which make one clip",
    ]
    assert not {"include", "exclude"} & ShardDataset(tmp_path / "plain").settings.keys()
    flags = ["--root-dir", str(root), "--out", str(tmp_path / "out"), "--workers", "1"]
    flags += ["--include", "walk*", "--include", "*_left.jpg", "--exclude", "*.mp4"]
    assert command.build(flags) == 0
    chosen = ShardDataset(tmp_path / "out")
    assert names(chosen) == ["pair/0_left.jpg", "pair/1_left.jpg", *(f"walk/frame_{n:06d}.jpg" for n in range(4))]
    assert chosen.odd == []
    assert chosen.settings["include"] == ["walk*", "*_left.jpg"] and chosen.settings["exclude"] == ["*.mp4"]
    again = build_shards(root, tmp_path / "out", include=("walk*", "*_left.jpg"), exclude=["*.mp4"])
    assert again.already_complete and again.skipped == {"not chosen by --include and --exclude": 3}
    assert verify_shards(tmp_path / "out", source_dir=root) == []
    for other in ({}, {"include": ["walk*"], "exclude": ["*.mp4"]}):
        with pytest.raises(SettingsError, match="clude is "):
            build_shards(root, tmp_path / "out", **other)


def test_a_set_that_knows_no_patterns_counts_as_built_without(root: Path, tmp_path: Path) -> None:
    build_shards(root, tmp_path / "out", exclude=["*.mp4"], workers=1)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    with pytest.raises(SettingsError, match=r"exclude is None and was \['\*\.mp4'\]"):
        build_shards(root, tmp_path / "out")
    del index["settings"]["exclude"]
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    assert build_shards(root, tmp_path / "out").already_complete


@pytest.mark.parametrize("wrong", [[], [""], "*.jpg", [3]])
def test_patterns_that_are_none_are_refused(root: Path, tmp_path: Path, wrong: object) -> None:
    with pytest.raises(SettingsError, match="include is"):
        build_shards(root, tmp_path / "out", include=wrong)  # type: ignore[arg-type]


def test_patterns_that_leave_nothing_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no frames under .* that --include and --exclude choose"):
        build_shards(root, tmp_path / "out", exclude=["*"])


def test_system_files_and_folders_change_nothing_but_the_report(tmp_path: Path) -> None:
    plain = data.make_clips(tmp_path / "plain" / "root", {"a": 3, "b": 3})
    full = data.make_clips(tmp_path / "full" / "root", {"a": 3, "b": 3})
    frame = (full / "a" / "frame_000000.jpg").read_bytes()
    for name in ("@eaDir/1.jpg/thumb.jpg", "a/__MACOSX/1.jpg", "b/frame_000000.jpg_original", "b/1.jpg~", "b/1.NEF"):
        (full / name).parent.mkdir(parents=True, exist_ok=True)
        (full / name).write_bytes(frame)
    for folder in (plain, full):
        build_shards(folder, folder.parent / "out", workers=1)
    counts = {"folder of a system or of previews": 2, "backup copy": 2, "RAW photograph": 1}
    assert build_shards(full, full.parent / "out").skipped == counts
    assert names(FolderDataset(full)) == names(ShardDataset(full.parent / "out"))
    assert verify_shards(full.parent / "out", source_dir=full) == []
    for folder in (plain, full):
        (folder.parent / "out" / "index.json").unlink()
        (folder.parent / "out" / "report.json").unlink()
    assert_same(plain.parent / "out", full.parent / "out")


def test_changes_of_size_are_counted_the_same_for_any_workers(tmp_path: Path) -> None:
    """After https://github.com/udacity/sdc-issue-reports/issues/1316 and https://github.com/Lsan2401/RMSIN/issues/27."""
    root = data.make_clips(tmp_path / "root", {"a": 4, "b": 4, "c": 4})
    data.make_clips(tmp_path / "small", {"a": 4}, height=32, width=40)
    (tmp_path / "small" / "a" / "frame_000002.jpg").replace(root / "b" / "frame_000002.jpg")
    odd = "changes of frame size within a clip: 2 (as b/frame_000002.jpg: 64x48 to 40x32)"
    for workers in (1, 2):
        report = build_shards(root, tmp_path / f"out{workers}", workers=workers)
        assert report.odd == [f"{odd}; --exclude GLOB leaves files out"]


def test_copies_of_folders_and_videos_are_named(tmp_path: Path) -> None:
    """What Windows, macOS and browsers call a file or folder that is there twice."""
    root = data.make_clips(tmp_path / "root", {"a": 3, "b": 3, "c": 3, "c (1)": 2})
    shutil.copytree(root / "a", root / "a - Copy")
    shutil.copytree(root / "b", root / "b copy")
    report = build_shards(root, tmp_path / "out", dry_run=True)
    flag = "--exclude GLOB leaves them out"
    assert report.odd == [f"clips that are copies of another by name and size: 2 (as a - Copy); {flag}"]


# Masks as PNGs with a palette (https://davischallenge.org), depth with 16 bits (https://cvg.cit.tum.de/data/datasets).
def test_depth_and_masks_in_folders_of_their_own_are_said(tmp_path: Path) -> None:
    root = tmp_path / "root"
    pictures = {"rgb": np.zeros((8, 8, 3), np.uint8), "depth": np.full((8, 8), 1500, np.uint16)}
    for name, picture in pictures.items():
        (root / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(picture).save(root / name / f"{k}.png")
    (root / "masks").mkdir()
    for k in range(3):
        Image.fromarray(np.zeros((8, 8), np.uint8)).convert("P").save(root / "masks" / f"{k}.png")
    report = build_shards(root, tmp_path / "shards", workers=1)
    assert report.odd == [
        "PNGs of 16 bits or with a palette, perhaps depth or masks: 6 (as depth/0.png); --exclude GLOB leaves them out"
    ]


def test_hidden_folders_are_counted(tmp_path: Path) -> None:
    for folder in ("root/a", "root/.frames", "root/a/.cache"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "0.jpg")
    report = build_shards(tmp_path / "root", tmp_path / "shards", workers=1)
    assert report.skipped == {"hidden folder": 2} and report.clips == 1
