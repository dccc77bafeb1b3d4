"""Videos from others: what FFmpeg calls an input error, pictures that take too much memory, what is no file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.errors import DataError, InvalidImage
from cltt.shards import layout
from cltt.source import videos
from cltt.source.video import decoded, frames, times
from cltt.source.video import file as video_file
from tests.helpers import data

pytest.importorskip("av")
from tests.helpers.video import write_video


def test_a_file_is_damaged_if_an_input_error_comes_twice_at_one_packet(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "film.mp4")
    error = OSError(errno.EIO, "Input/output error")
    Path(os.fsdecode(path)).write_bytes(b"x" * 100)
    assert not video_file.is_damaged(path, 7, error)  # it may pass
    assert video_file.is_damaged(path, 7, error)
    assert not video_file.is_damaged(path, 9, error)
    assert not video_file.is_damaged(path, 9, OSError(errno.ENOENT, "gone"))
    os.rename(path, path + b".away")
    assert not video_file.is_damaged(path, 9, error)  # the system cannot read it either
    os.rename(path + b".away", path)
    assert not video_file.is_damaged(path, 9, error)  # it has just recovered
    assert video_file.is_damaged(path, 9, error)


@pytest.mark.parametrize("container", [".webm", ".mp4", ".avi"])
def test_a_video_that_ffmpeg_cannot_parse_does_not_stop_a_build(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    root = data.make_clips(tmp_path / "root", {"a": 3})
    codec = {".webm": "libvpx", ".mp4": "libx264", ".avi": "mpeg4"}[container]
    write_video(root / f"film{container}", 12, codec=codec)
    real = video_file.packets_of

    def breaks(opened: object, stream: object) -> object:
        for count, packet in enumerate(real(opened, stream)):  # type: ignore[arg-type]
            if count == 5:
                raise av.OSError(errno.EIO, "Input/output error", "film")
            yield packet

    for module in (times, decoded, frames):
        monkeypatch.setattr(module, "packets_of", breaks)
    report = build_shards(root, tmp_path / "out", workers=1, io_patience=20)
    assert report.frames >= 3
    assert any("film" in note["file"] for note in layout.read_report(tmp_path / "out")["files"])


def test_a_video_of_more_pixels_than_asked_for_gives_no_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", 6)
    clip, _, _ = videos.list_frames(os.fsencode(tmp_path), _found(path), videos.Sampling())
    wanted = [(frame.mark, frame.entry) for frame in clip.frames]
    frames = list(
        videos.read_frames(os.fsencode(tmp_path), clip.key, clip.video, wanted, videos.Sampling(max_pixels=1000))
    )
    assert len(frames) == 6 and all(isinstance(frame, InvalidImage) for frame in frames)


def _found(path: Path) -> videos.SourceClip:
    size, mtime_ns = video_file.file_identity(os.fsencode(path))
    return videos.SourceClip(os.fsencode(path.name), [videos.SourceFrame(b"", size, mtime_ns)])


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "film.mp4")
    with pytest.raises(DataError, match="not a regular file"):
        videos.list_one(os.fsencode(tmp_path), b"film.mp4", videos.Sampling())


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\nprecious.mp4\n", "ffconcat version 1.0\nfile precious.mp4\n"])
def test_a_play_list_under_a_videos_name_opens_nothing(tmp_path: Path, text: str) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 3})
    write_video(tmp_path / "root" / "hidden" / ".precious.mp4", 6).rename(root / "precious.bin")
    (root / "film.mp4").write_text(text.replace("precious.mp4", "precious.bin"))
    report = build_shards(root, tmp_path / "out", workers=1)
    assert {note["file"] for note in layout.read_report(tmp_path / "out")["files"]} >= {"film.mp4"}
    assert "film.mp4" not in str(report)
