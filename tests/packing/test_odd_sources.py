"""One odd file among many: the build goes on, the file is named, the clip is cut there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.errors import SettingsError
from cltt.packing import workers as workers_module
from cltt.packing.builder import MAX_WORKERS
from cltt.shards import layout
from cltt.shards.folder import FolderDataset
from tests.helpers import data, hostile

ODD = {
    "4:4:1": hostile.odd_pictures()["jpeg 441"],
    "too wide PNG": hostile.saved(np.zeros((2, 66_000), np.uint8), "PNG"),
    "too high TIFF": hostile.saved(np.zeros((66_000, 2), np.uint8), "TIFF"),
    "too wide BMP": hostile.saved(np.zeros((2, 66_000), np.uint8), "BMP"),
    "too many pixels": hostile.png_of(40_000, 40_000),
    "progressive bomb": hostile.of_size(hostile.odd_pictures()["jpeg progressive"], 40_000, 40_000),
}


def _reasons(out: Path) -> dict[str, str]:
    return {note["file"]: note["reason"] for note in layout.read_report(out)["files"]}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_does_not_stop_a_build(tmp_path: Path, name: str) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 5})
    (root / "a" / "frame_000002.jpg").write_bytes(ODD[name])
    report = build_shards(root, tmp_path / "out", workers=1)
    assert "a/frame_000002.jpg" in _reasons(tmp_path / "out")
    if name == "4:4:1":
        assert (report.frames, report.reencoded) == (5, 1)
    else:
        assert (report.frames, report.cut) == (4, (1, 2))
    plain = FolderDataset(root, check=True)
    assert plain.clip_lengths.tolist() == report.clip_lengths.tolist()


def test_a_picture_that_takes_more_memory_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 5})
    import simplejpeg

    decode = simplejpeg.decode_jpeg
    victim = (root / "a" / "frame_000002.jpg").read_bytes()

    def out_of_memory(jpeg: bytes, *args: object, **options: object) -> object:
        if jpeg == victim:
            raise MemoryError
        return decode(jpeg, *args, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", out_of_memory)
    assert build_shards(root, tmp_path / "out", workers=1).frames == 4
    assert _reasons(tmp_path / "out") == {"a/frame_000002.jpg": "invalid JPEG: it takes more memory than there is"}


def test_a_file_of_a_hundred_gigabytes_is_left_out_unread(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 3})
    with (root / "a" / "huge.jpg").open("wb") as file:
        file.truncate(10**11)
    report = build_shards(root, tmp_path / "out", workers=1)
    assert report.frames == 3 and _reasons(tmp_path / "out") == {"a/huge.jpg": "not an image"}


def test_pictures_of_more_pixels_than_asked_for_are_left_out(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 2}, height=20, width=20)
    data.make_clips(root, {"b": 2}, height=40, width=40)
    assert build_shards(root, tmp_path / "out", max_pixels=400).frames == 2
    assert set(_reasons(tmp_path / "out").values()) == {"more than 400 pixels"}


def test_a_fifo_named_like_a_frame_is_left_out(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 2})
    os.mkfifo(root / "a" / "pipe.jpg")
    assert build_shards(root, tmp_path / "out", workers=1).frames == 2
    assert _reasons(tmp_path / "out") == {"a/pipe.jpg": "not a regular file"}


def test_no_more_processes_than_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 30})
    started = []
    real = workers_module.Worker
    monkeypatch.setattr(workers_module, "Worker", lambda out, *args: started.append(out) or real(out, *args))
    build_shards(root, tmp_path / "one", workers=1000)
    assert started == []
    shards = build_shards(root, tmp_path / "few", workers=1000, shard_size=15_000).shards
    assert 2 <= shards < 10 and len(started) == shards - 1
    with pytest.raises(SettingsError, match="workers is 1000000; it must be from 1"):
        build_shards(root, tmp_path / "many", workers=1_000_000)
    assert MAX_WORKERS < 1_000_000


def test_names_that_hide_nothing(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 2})
    os.rename(root / "a", os.fsencode(root) + b"/\x1b[2J\xff")
    build_shards(root, tmp_path / "out", workers=1)
    assert os.fsencode(ShardDataset(tmp_path / "out").clip_key(0)) == b"\x1b[2J\xff"
