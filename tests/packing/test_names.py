"""Names: whatever a file system allows comes through, and links neither loop nor give a folder twice."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cltt import ShardDataset, build_shards
from cltt.shards import layout, tar
from tests.helpers import data

HARD_NAMES = [
    b"with space.jpg",
    b"quote'\".jpg",
    "größe_日本.jpg".encode(),
    b"latin_\xe9\xff.jpg",
    b"new\nline.jpg",
    b"back\\slash.jpg",
    b"n" * 150 + b".jpg",
    b"m" * 251 + b".jpg",
    b"a.b.jpg",
    b"a_b.jpg",
    b"a.c.jpg",
    b"50%.jpg",
    b"UP.JPG",
    b"UP.JPG.jpg",
    b"no_extension",
    b"no_extension.jpg",
    b"-rf.jpg",
]


def _picture(tmp_path: Path) -> bytes:
    return (data.make_clips(tmp_path / "one", {"c": 1}) / "c" / "frame_000000.jpg").read_bytes()


@pytest.fixture
def hard_root(tmp_path: Path) -> Path:
    """Hard file names in folders with hard names, the last over 255 characters of path."""
    picture = _picture(tmp_path)
    root = tmp_path / "root"
    for folder in (b"plain", b"we ird.v1/\xe9t\xe9", b"d" * 200 + b"/" + b"e" * 200):
        path = os.path.join(os.fsencode(root), folder)
        os.makedirs(path)
        for name in HARD_NAMES:
            with open(os.path.join(path, name), "wb") as file:
                file.write(picture)
    return root


def test_hard_names_come_back_exactly(hard_root: Path, tmp_path: Path) -> None:
    build_shards(hard_root, tmp_path / "out", workers=1)
    dataset = ShardDataset(tmp_path / "out")
    names = [os.fsencode(dataset.frame_name(k)) for k in range(dataset.num_frames)]
    expected = {
        os.path.join(*map(os.fsencode, (key, name))) for key in map(dataset.clip_key, range(3)) for name in HARD_NAMES
    }
    assert set(names) == expected and len(names) == len(expected)
    for frame, name in enumerate(names):
        assert dataset.read([frame])[0] == Path(os.fsdecode(os.path.join(os.fsencode(hard_root), name))).read_bytes()


def test_gnu_tar_extracts_hard_names_under_their_member_names(hard_root: Path, tmp_path: Path) -> None:
    build_shards(hard_root, tmp_path / "out", workers=1)
    target = tmp_path / "extracted"
    target.mkdir()
    subprocess.run(["tar", "xf", tmp_path / "out" / "shard-000000.tar", "-C", target], check=True)
    found = {
        os.path.relpath(os.path.join(d, f), os.fsencode(target))
        for d, _, fs in os.walk(os.fsencode(target))
        for f in fs
    }
    assert {tar.source_path(member) for member in found} == {
        os.path.relpath(os.path.join(d, f), os.fsencode(hard_root))
        for d, _, fs in os.walk(os.fsencode(hard_root))
        for f in fs
    }


def test_clips_within_clips_and_in_the_root_and_natural_order(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a10": 1, "a2": 2, "a2/inner": 3, "a2/inner10": 1, "a2/inner9": 2})
    (root / "loose_1.jpg").write_bytes((root / "a10" / "frame_000000.jpg").read_bytes())
    picture = (root / "a2" / "frame_000000.jpg").read_bytes()
    for number in (10, 9, 100):
        (root / "a10" / f"frame_{number}.jpg").write_bytes(picture)
    build_shards(root, tmp_path / "out", workers=1)
    dataset = ShardDataset(tmp_path / "out")
    keys = [dataset.clip_key(clip) for clip in range(dataset.num_clips)]
    assert keys == [".", "a2", "a2/inner", "a2/inner9", "a2/inner10", "a10"]
    assert dataset.clip_lengths.tolist() == [1, 2, 3, 2, 1, 4]
    last = [dataset.frame_name(k) for k in range(dataset.num_frames)][-4:]
    assert last == ["a10/frame_000000.jpg", "a10/frame_9.jpg", "a10/frame_10.jpg", "a10/frame_100.jpg"]
    assert dataset.frame_name(0) == "loose_1.jpg"


def test_links_are_followed_once_and_loops_refused(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 2, "b": 1})
    elsewhere = data.make_clips(tmp_path / "elsewhere", {"c": 3, "c/deep": 1})
    (root / "a" / "linked.jpg").symlink_to(elsewhere / "c" / "frame_000000.jpg")
    (root / "far").symlink_to(elsewhere)
    (root / "far_again").symlink_to(elsewhere / "c")
    (root / "same").symlink_to(root / "a")
    (elsewhere / "c" / "up").symlink_to(root)
    report = build_shards(root, tmp_path / "out", workers=1)
    dataset = ShardDataset(tmp_path / "out")
    keys = [dataset.clip_key(clip) for clip in range(dataset.num_clips)]
    assert keys == ["a", "b", "far/c", "far/c/deep"]
    assert dataset.clip_lengths.tolist() == [3, 1, 3, 1]
    assert report.skipped == {"symbolic link to a folder that is already in": 3}
    assert {file["file"] for file in layout.read_report(tmp_path / "out")["files"]} == {"far_again", "same", "far/c/up"}
