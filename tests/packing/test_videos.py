"""Shards from videos: what lies in them, where they are cut, what is reported, and that any way of building agrees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.errors import DataError
from cltt.shards import layout
from cltt.shards.folder import FolderDataset
from cltt.shards.verify import verify_shards
from cltt.source.jpeg import jpeg_info
from cltt.source.pixels import decode_jpeg
from cltt.source.video import timeline as video_times
from cltt.source.video.times import SHORT
from tests.helpers import data, video
from tests.helpers.folders import assert_same

pytest.importorskip("av")
REPOSITORY = Path(__file__).parents[2]


def numbers(dataset: ShardDataset | FolderDataset, frames: object) -> list[int]:
    return [video.number_of(decode_jpeg(jpeg, jpeg_info(jpeg))) for jpeg in dataset.read(frames)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two children with videos of several kinds, one of them with a pause, and one folder of frames."""
    root = tmp_path_factory.mktemp("source") / "root"
    video.write_video(root / "ada" / "one.mp4", 90, options={"bf": "3"}, gop=25)
    video.write_video(root / "ada" / "pause.mkv", 60, times=lambda k: k / 30 + (2 if k >= 40 else 0))
    video.write_video(root / "ben" / "day 2" / "two.MTS", 60, container="mpegts")
    video.write_video(root / "ben" / "old.avi", 50, codec="mpeg4", rate=25)
    (root / "ada" / "._one.mp4").write_bytes(b"\0\5\x16\7")
    (root / "ada" / "notes.txt").write_text("not a frame\n")
    data.make_clips(root, {"frames/clip": 8})
    return root


@pytest.fixture(scope="module")
def shards(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "out"
    build_shards(root, out, fps=10, resize_short=60, workers=1, shard_size=40_000, label_from="regex:([^/]*)/")
    return out


def test_a_video_is_a_clip_of_evenly_sampled_frames(root: Path, shards: Path) -> None:
    dataset = ShardDataset(shards)
    clips = [(dataset.clip_key(clip), dataset.clip_part(clip)) for clip in range(dataset.num_clips)]
    assert clips == [
        ("ada/one.mp4", 0),
        ("ada/pause.mkv", 0),
        ("ada/pause.mkv", 1),
        ("ben/old.avi", 0),
        ("ben/day 2/two.MTS", 0),
        ("frames/clip", 0),
    ]
    shown = [numbers(dataset, range(*dataset.clip_offsets[clip : clip + 2])) for clip in range(5)]
    assert shown[0] == list(range(0, 90, 3)) and shown[1] == list(range(0, 40, 3))
    assert shown[2] == list(range(40, 60, 3)) and shown[4] == list(range(0, 60, 3))
    assert shown[3] == [
        int(k * 2.5 + 1e-9) for k in range(20)
    ]  # 25 frames per second, the last shown at or before k/10
    assert [dataset.label_names[label] for label in dataset.labels] == ["ada", "ada", "ada", "ben", "ben", "frames"]


def test_frames_have_times_and_names(shards: Path) -> None:
    dataset = ShardDataset(shards)
    first, pause, folder = (int(dataset.clip_offsets[clip]) for clip in (0, 2, 5))
    assert dataset.frame_name(first + 4) == "ada/one.mp4#t=0.400"
    assert dataset.frame_name(pause) == "ada/pause.mkv#t=3.333"
    assert dataset.frame_name(folder) == "frames/clip/frame_000000.jpg"
    times = dataset.frame_time(np.arange(first, first + 30).reshape(5, 6))
    assert times is not None and times.shape == (5, 6) and times.dtype == np.float64
    assert times.ravel() == pytest.approx([k / 10 for k in range(30)])
    assert np.isnan(dataset.frame_time([folder, folder + 1])).all()  # type: ignore[arg-type]


def test_the_format_is_the_second_version_and_others_stay_the_first(shards: Path, tmp_path: Path) -> None:
    index = json.loads((shards / layout.INDEX).read_text())
    assert index["version"] == 2 and layout.TIMES in index["files"]
    build_shards(data.make_clips(tmp_path / "frames", {"a": 3}), tmp_path / "out")
    plain = json.loads((tmp_path / "out" / layout.INDEX).read_text())
    dataset = ShardDataset(tmp_path / "out")
    assert plain["version"] == 1 and layout.TIMES not in plain["files"]
    assert dataset.frame_time([0, 1]) is None and dataset.frame_boxes([0]) is None


def test_members_are_named_by_key_and_count(shards: Path) -> None:
    names = []
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            names += tar.getnames()
    assert names[:30] == [f"ada/one.mp4/{k:08d}.jpg" for k in range(30)]
    pause = [name for name in names if name.startswith("ada/pause.mkv/")]
    assert pause == [f"ada/pause.mkv/{k:08d}.jpg" for k in range(len(pause))], "the count goes on over a cut"


def test_frames_are_made_smaller(shards: Path) -> None:
    dataset = ShardDataset(shards)
    sizes = {(int(row["width"]), int(row["height"])) for row in dataset.frame_records(range(90))}
    assert sizes == {(96, 60)}


def test_the_report_names_file_place_and_reason(shards: Path) -> None:
    report = layout.read_report(shards)
    notes = {(file["file"], file["what"], file["reason"]) for file in report["files"] if file["what"] != "reencoded"}
    assert ("ada/pause.mkv#t=3.333", "cut", video_times.GAP) in notes
    assert ("ada/._one.mp4", "skipped", "hidden file") in notes and (
        "ada/notes.txt",
        "skipped",
        "not an image",
    ) in notes
    assert report["counts"]["cut"] == {video_times.GAP: 1}


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_workers_gives_the_same_bytes(root: Path, shards: Path, tmp_path: Path, workers: int) -> None:
    options = {"fps": 10, "resize_short": 60, "shard_size": 40_000, "label_from": "regex:([^/]*)/"}
    build_shards(root, tmp_path / "out", workers=workers, **options)  # type: ignore[arg-type]
    assert_same(tmp_path / "out", shards)


def test_tasks_together_give_the_same_bytes(root: Path, shards: Path, tmp_path: Path) -> None:
    options = {"fps": 10, "resize_short": 60, "shard_size": 40_000, "label_from": "regex:([^/]*)/", "workers": 1}
    for task in ("2/3", "0/3", "1/3"):
        build_shards(root, tmp_path / "out", task=task, **options)  # type: ignore[arg-type]
    build_shards(root, tmp_path / "out", finalize=True, **options)  # type: ignore[arg-type]
    assert_same(tmp_path / "out", shards)


def test_a_dry_run_counts_without_decoding(root: Path, shards: Path, tmp_path: Path, monkeypatch: object) -> None:
    planned = build_shards(root, tmp_path / "none", fps=10, resize_short=60, dry_run=True)
    built = ShardDataset(shards)
    assert planned.clip_lengths.tolist() == built.clip_lengths.tolist() and not (tmp_path / "none").exists()
    assert 0.3 < planned.bytes / sum(shard.stat().st_size for shard in shards.glob("*.tar")) < 3


def test_shards_have_about_the_size_asked_for(root: Path, tmp_path: Path) -> None:
    build_shards(root, tmp_path / "out", fps=10, shard_size=100_000)
    sizes = [shard.stat().st_size for shard in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(sizes) > 2 and all(25_000 < size < 400_000 for size in sizes[:-1])


def test_without_a_rate_every_frame_is_taken(root: Path, tmp_path: Path) -> None:
    build_shards(root / "ada", tmp_path / "out", quality=95)
    dataset = ShardDataset(tmp_path / "out")
    assert dataset.clip_lengths.tolist() == [90, 40, 20]
    assert numbers(dataset, range(90)) == list(range(90))


def test_a_longer_gap_may_be_allowed(root: Path, tmp_path: Path) -> None:
    build_shards(root / "ada", tmp_path / "out", fps=10, max_gap=3)
    assert ShardDataset(tmp_path / "out").clip_lengths.tolist() == [30, 40]  # the pause repeats the frame before it


def test_a_folder_of_videos_is_read_like_its_shards(root: Path, tmp_path: Path) -> None:
    build_shards(root, tmp_path / "out", fps=7)
    built, plain = ShardDataset(tmp_path / "out"), FolderDataset(root, fps=7)
    assert plain.clip_lengths.tolist() == built.clip_lengths.tolist()
    ids = np.random.default_rng(0).integers(0, built.num_frames, 30)
    assert plain.read(ids) == built.read(ids)
    assert [plain.frame_name(int(k)) for k in ids] == [built.frame_name(int(k)) for k in ids]
    assert np.array_equal(plain.frame_time(ids), built.frame_time(ids), equal_nan=True)  # type: ignore[arg-type]
    assert (plain.frame_records(ids)["crc"] == built.frame_records(ids)["crc"]).all()


# ---- odd and broken files


def test_what_is_no_video_is_left_out_with_its_reason(tmp_path: Path) -> None:
    root = tmp_path / "root"
    video.write_video(root / "good.mp4", 20)
    whole = (root / "good.mp4").read_bytes()
    (root / "text.mp4").write_text("hello")
    (root / "empty.mov").write_bytes(b"")
    (root / "end lost.mp4").write_bytes(whole[: len(whole) // 2])  # with the table of its frames
    video.write_sound(root / "sound.m4v")
    data.make_clips(tmp_path, {"one": 1})
    shutil.copy(tmp_path / "one" / "frame_000000.jpg", root / "picture.mp4")  # told by its content
    shutil.copy(root / "good.mp4", root / "nameless")
    report = build_shards(root, tmp_path / "out")
    dataset = ShardDataset(tmp_path / "out")
    assert [dataset.clip_key(clip) for clip in range(dataset.num_clips)] == [".", "good.mp4", "nameless"]
    notes = {file["file"]: file["reason"] for file in layout.read_report(tmp_path / "out")["files"]}
    assert "cannot be opened" in notes["text.mp4"] and "cannot be opened" in notes["empty.mov"]
    assert "cannot be opened" in notes["end lost.mp4"] and notes["sound.m4v"] == "no video stream"
    assert sum(report.skipped.values()) == 4


def test_a_video_cut_off_in_the_middle_gives_its_good_part(tmp_path: Path) -> None:
    front = {"movflags": "faststart"}
    import av

    path = tmp_path / "root" / "cut.mp4"
    plain = video.write_video(tmp_path / "plain.mp4", 60, gop=10)
    path.parent.mkdir()
    with av.open(str(plain)) as source, av.open(str(path), "w", options=front) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    build_shards(path.parent, tmp_path / "out")
    dataset = ShardDataset(tmp_path / "out")
    shown = numbers(dataset, range(dataset.num_frames))
    assert shown == list(range(len(shown))) and 20 < len(shown) < 50
    (note,) = [file for file in layout.read_report(tmp_path / "out")["files"] if file["what"] == "cut"]
    assert note["file"].startswith("cut.mp4#t=") and note["reason"].startswith(video_times.CUT_OFF)


@pytest.mark.parametrize("tag", [b"DURATION", b"XURATION"], ids=["of the stream", "of the file alone"])
def test_a_matroska_file_that_is_cut_off_is_noted(tag: bytes, tmp_path: Path) -> None:
    """Its blocks end somewhere, and nothing but the length in its header tells."""
    path = video.write_video(tmp_path / "root" / "cut.mkv", 120, gop=10)
    whole = path.read_bytes().replace(b"DURATION", tag)
    path.write_bytes(whole)
    build_shards(path.parent, tmp_path / "whole")
    assert not [file for file in layout.read_report(tmp_path / "whole")["files"] if file["what"] == "cut"]
    path.write_bytes(whole[: len(whole) * 4 // 10])
    build_shards(path.parent, tmp_path / "out")
    assert 20 < ShardDataset(tmp_path / "out").num_frames < 90
    (note,) = [file for file in layout.read_report(tmp_path / "out")["files"] if file["what"] == "cut"]
    assert note["reason"] == SHORT


def test_a_hole_drops_frames_and_cuts_the_clip_and_no_count_changes(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "root" / "a.mp4", 60, gop=10)
    import av

    with av.open(str(path)) as file:
        at = [packet for packet in file.demux(video=0) if packet.size][20]  # a key frame
        position, size = at.pos, at.size
    content = bytearray(path.read_bytes())
    content[position + 30 : position + size] = os.urandom(size - 30)
    path.write_bytes(content)
    build_shards(tmp_path / "root", tmp_path / "out", fps=10)
    dataset = ShardDataset(tmp_path / "out")
    assert dataset.num_clips == 2 and dataset.clip_part(1) == 1
    shown = numbers(dataset, range(dataset.num_frames))
    assert shown == [k for k in range(0, 60, 3) if not 20 <= k < 30]
    assert dataset.frame_name(int(dataset.clip_offsets[1])) == "a.mp4#t=1.000"
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert [int(Path(name).stem) for name in tar.getnames()] == [k // 3 for k in shown]
    skipped = [file for file in layout.read_report(tmp_path / "out")["files"] if file["what"] == "skipped"]
    assert [file["file"] for file in skipped] == ["a.mp4#t=0.700", "a.mp4#t=0.800", "a.mp4#t=0.900"]


def test_of_two_streams_the_first_is_taken_and_the_other_named(tmp_path: Path) -> None:
    import av

    path = tmp_path / "root" / "two.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as file:
        streams = [file.add_stream("libx264", rate=30) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = *video.SIZE, "yuv420p"
        for k in range(10):
            for base, stream in zip((0, 100), streams, strict=True):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(video.picture(base + k), format="rgb24")))
        for stream in streams:
            file.mux(stream.encode())
    build_shards(path.parent, tmp_path / "out")
    assert numbers(ShardDataset(tmp_path / "out"), range(10)) == list(range(10))
    notes = [(note["file"], note["what"]) for note in layout.read_report(tmp_path / "out")["files"]]
    assert notes == [("two.mkv", "skipped"), ("two.mkv", "read")]


def test_a_video_that_changed_since_the_plan_is_refused_by_name(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        video.write_video(root / name, 30)
    build_shards(root, out, task="0/2", shard_size=60_000, workers=1)
    os.utime(root / "b.mp4", ns=(1, 1))
    with pytest.raises(DataError, match=r"b\.mp4' has changed since the plan was made"):
        build_shards(root, out, task="1/2", shard_size=60_000, workers=1)
        build_shards(root, out, shard_size=60_000, workers=1)


def test_without_pyav_one_sentence_names_the_extra(root: Path, tmp_path: Path) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('No module named av')\n")
    command = [sys.executable, "tools/build_shards.py", "--root-dir", str(root), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'cltt[video]'" in done.stderr and "Traceback" not in done.stderr


# ---- verify


def test_verify_compares_with_the_videos(root: Path, shards: Path, tmp_path: Path) -> None:
    assert verify_shards(shards, decode=True, source_dir=root) == []
    other = tmp_path / "root"
    shutil.copytree(root, other)
    (other / "ben" / "old.avi").unlink()
    video.write_video(other / "ada" / "one.mp4", range(100, 190), options={"bf": "3"}, gop=25)
    video.write_video(other / "new.mp4", 5)
    mismatches = {mismatch.name: mismatch.problem for mismatch in verify_shards(shards, source_dir=other)}
    assert mismatches["ben/old.avi"] == "no such video in the source"
    assert mismatches["new.mp4"] == "video in the source, not in the shards"
    changed = [name for name in mismatches if name.startswith("ada/one.mp4#t=")]
    assert len(changed) == 30 and len(mismatches) == 32
