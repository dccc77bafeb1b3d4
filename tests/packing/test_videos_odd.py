"""Videos as people have them: several streams, bars that are cut off, other containers, slow ones; and what is said."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.shards import layout
from cltt.source.jpeg import jpeg_info
from cltt.source.pixels import decode_jpeg
from cltt.source.video.kinds import is_video
from cltt.source.videos import Sampling, guess_bytes
from tests.helpers import video
from tests.helpers.folders import assert_same

pytest.importorskip("av")
import av

SMALL = (64, 40)


def numbers(dataset: ShardDataset) -> list[int]:
    return [video.number_of(decode_jpeg(jpeg, jpeg_info(jpeg))) for jpeg in dataset.read(range(dataset.num_frames))]


def built(path: Path, **options: Any) -> tuple[ShardDataset, list[str]]:
    """The set of the folder that holds ``path``, and what the build found odd."""
    out = path.parent.parent / f"out{len(list(path.parent.parent.iterdir()))}"
    report = build_shards(path.parent, out, workers=1, **options)
    return ShardDataset(out), report.odd


def write_streams(path: Path, streams: Sequence[tuple[str, tuple[int, int], int]], **options: str) -> Path:
    """Streams of (codec, size, frames); the k-th shows numbers from 50 k on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as file:
        made = []
        for codec, (width, height), _ in streams:
            stream = file.add_stream(codec, rate=30)
            stream.width, stream.height = width, height
            stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
            made.append(stream)
        for k in range(max(count for *_, count in streams)):
            for place, (stream, (_, size, count)) in enumerate(zip(made, streams, strict=True)):
                if k < count:
                    frame = av.VideoFrame.from_ndarray(video.picture(50 * place + k), format="rgb24")
                    file.mux(stream.encode(frame.reformat(*size, format=stream.pix_fmt)))
        for stream in made:
            file.mux(stream.encode())
    return path


# ---- which stream

# A picture that is larger than the video: https://github.com/Nevcairiel/LAVFilters/issues/430; a thumbnail that comes
# first: https://github.com/mpv-player/mpv/pull/15345; the smallest of several sizes comes first:
# https://github.com/dirkvdb/ffmpegthumbnailer/issues/114
STREAMS: dict[str, list[tuple[str, tuple[int, int], int]]] = {
    "larger.webm": [("libvpx", (256, 160), 1), ("libvpx", video.SIZE, 40)],
    "first.mkv": [("mjpeg", (256, 160), 1), ("libx264", video.SIZE, 40)],
    "first.mp4": [("mjpeg", (256, 160), 1), ("libx264", video.SIZE, 40)],
    "sizes.mp4": [("libx264", SMALL, 40), ("libx264", video.SIZE, 40)],
    "sizes.mkv": [("libx264", SMALL, 40), ("libx264", video.SIZE, 40)],
    "sizes.ts": [("libx264", SMALL, 40), ("libx264", video.SIZE, 40)],
}


@pytest.mark.parametrize("name", STREAMS)
def test_the_main_stream_is_taken_and_the_others_are_said(tmp_path: Path, name: str) -> None:
    path = write_streams(tmp_path / "root" / name, STREAMS[name])
    dataset, odd = built(path)
    assert numbers(dataset) == list(range(50, 90))
    said = f"videos of several video streams: 1 ({name}: number 1 of those from 0 to 1)"
    assert odd == [f"{said}; --stream N takes another"]
    other, odd = built(path, stream=0)
    assert odd == [] and numbers(other) == list(range(STREAMS[name][0][2]))
    assert other.settings["stream"] == 0 and "stream" not in dataset.settings


def test_a_stream_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "root" / "two.mp4", STREAMS["sizes.mp4"])
    video.write_video(path.with_name("one.mp4"), 8)
    dataset, _ = built(path, stream=1)
    assert dataset.num_clips == 1
    reasons = {note["file"]: note["reason"] for note in layout.read_report(dataset.path)["files"]}
    assert reasons["one.mp4"] == "no video stream 1"


# ---- what a player shows


def barred(number: int) -> np.ndarray:
    tall = np.zeros((112, 128, 3), np.uint8)
    tall[16:96] = video.picture(number)
    return tall


def into_boxes(data: bytes, names: Sequence[bytes], box: bytes) -> bytes:
    """``data`` with a box put at the end of the one that ``names`` lead to; the table stands behind the frames."""
    skipped = {b"stsd": 16, b"avc1": 86}
    at, stop, found = 0, len(data), []
    for name in names:
        while data[at + 4 : at + 8] != name:
            at += int.from_bytes(data[at : at + 4], "big")
            assert at < stop, name
        found.append(at)
        stop, at = at + int.from_bytes(data[at : at + 4], "big"), at + skipped.get(name, 8)
    changed = bytearray(data[:stop] + box + data[stop:])
    for place in found:
        changed[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + len(box)).to_bytes(4, "big")
    return bytes(changed)


STSD = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")


def clap(*numbers: int) -> bytes:
    return struct.pack(f">I4s{len(numbers)}i", 8 + 4 * len(numbers), b"clap", *numbers)


# https://github.com/mpv-player/mpv/issues/16278; a corner instead of the middle, and odd numbers, as in
# https://github.com/AOMediaCodec/libavif/pull/2426
@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        (clap(128, 1, 80, 1, 0, 1, 0, 1), slice(16, 96), slice(0, 128)),
        (clap(128, 1, 160, 2, 0, 1, -8, 1), slice(8, 88), slice(0, 128)),
        (clap(101, 1, 77, 1, 7, 2, 1, 2), slice(18, 95), slice(17, 118)),
        (clap(4000, 1, 80, 1, 0, 1, 0, 1), slice(0, 112), slice(0, 128)),
        (clap(128, 1, 80, 0, 0, 1, 0, 1), slice(0, 112), slice(0, 128)),
        (b"\0\0\0\x10clap\0\0\0\x80\0\0\0\1", slice(0, 112), slice(0, 128)),
    ],
    ids=["middle", "off", "odd", "too large", "over zero", "cut off"],
)
@pytest.mark.parametrize("short", [None, 40])
def test_the_clean_aperture_of_mp4_is_cut_out(
    tmp_path: Path, box: bytes, rows: slice, columns: slice, short: int | None
) -> None:
    plain = video.write_video(tmp_path / "plain" / "a.mp4", 4, draw=barred)
    path = tmp_path / "root" / "a.mp4"
    path.parent.mkdir()
    path.write_bytes(into_boxes(plain.read_bytes(), STSD, box))
    (cut, _), (whole, _) = built(path, quality=100, resize_short=short), built(plain, quality=100)
    pixels, expected = (decode_jpeg(jpeg, jpeg_info(jpeg)) for jpeg in (cut.read([2])[0], whole.read([2])[0]))
    expected = expected[rows, columns]
    if short is None:
        assert pixels.shape == expected.shape and np.abs(pixels.astype(int) - expected).mean() < 2
    else:
        sides = expected.shape[:2]
        assert pixels.shape[:2] == tuple(round(side * short / min(sides)) for side in sides)


def test_pixel_crop_of_matroska_is_cut_out(tmp_path: Path) -> None:
    """After https://github.com/MediaArea/MediaInfoLib/issues/1771."""
    path = video.write_video(tmp_path / "root" / "a.mkv", 4, draw=barred)
    size = b"\xb0\x81\x80\xba\x81\x70"  # the width and height in the element Video, with two more that are not needed
    before = b"\xe0\x8a" + size + b"\x54\xb2\x81\x04" + b"\x55\xee\x81\x00"
    after = b"\xe0\x8e" + size + b"\x54\xbb\x81\x10" + b"\x54\xaa\x81\x10"  # PixelCropTop, PixelCropBottom
    data = path.read_bytes()
    assert data.count(before) == 1
    path.write_bytes(data.replace(before, after))
    dataset, _ = built(path)
    record = dataset.frame_records([0])[0]
    assert record["height"] == 80 and numbers(dataset) == list(range(4))


# ---- kinds of file

KINDS: dict[str, dict[str, Any]] = {
    "a.wmv": {"codec": "wmv2", "container": "asf"},
    "a.flv": {"codec": "flv"},
    "a.ogv": {"codec": "libvpx", "container": "ogg"},
    "a.h264": {"container": "h264"},
    "a.hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}, "container": "hevc"},
    "a.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "container": "mjpeg"},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8", "rate": 25},
    "a.m2ts": {"container": "mpegts"},
    "a.3gp": {"codec": "mpeg4", "container": "3gp"},
    "a.vob": {"codec": "mpeg2video", "container": "vob"},
}


# .h264 of a Raspberry Pi has no times: https://github.com/waveform80/picamera/issues/500 and
# https://github.com/raspberrypi/picamera2/issues/737
def test_other_kinds_give_their_frames(tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        video.write_video(tmp_path / "root" / name, 30, **kind)
    (tmp_path / "root" / "a.y4m").write_bytes(b"YUV4MPEG2 W4 H4 F25:1\nFRAME\n" + bytes(24))
    (tmp_path / "root" / "a.rmvb").write_bytes(b".RMF" + bytes(20))
    (tmp_path / "root" / "nameless").write_bytes(b"nut/multimedia container\0")
    dataset, odd = built(tmp_path / "root" / "a.wmv")
    assert [dataset.clip_key(clip) for clip in range(dataset.num_clips)] == sorted(KINDS)
    for clip in range(dataset.num_clips):
        frames = range(*dataset.clip_offsets[clip : clip + 2])
        shown = [video.number_of(decode_jpeg(jpeg, jpeg_info(jpeg))) for jpeg in dataset.read(frames)]
        assert shown == list(range(30)), dataset.clip_key(clip)
    said = "videos without times, whose frames are taken to come at 25 per second: 3 (as a.h264)"
    assert said in odd
    counts = layout.read_report(dataset.path)["counts"]
    assert counts["skipped"] == {"a video of a kind that is not read": 3}
    assert counts["read"]["by decoding, as a packet of .wmv need not be a frame"] == 1


# https://github.com/sindresorhus/file-type/pull/497, https://github.com/google/ExoPlayer/issues/1488
def test_packets_of_192_bytes_are_known_by_their_content(tmp_path: Path) -> None:
    plain, blu_ray = (
        video.write_video(tmp_path / name, 8, container="mpegts").read_bytes() for name in ("a.ts", "a.m2ts")
    )
    assert blu_ray[4] == blu_ray[196] == plain[0]
    assert is_video(plain[:197]) and is_video(blu_ray[:197]) and not is_video(blu_ray[1:198])


# ---- more frames per second than there are


# https://github.com/facebookresearch/pytorchvideo/issues/29, https://github.com/mapillary/mapillary_tools/pull/191
@pytest.mark.parametrize(("rate", "fps", "slower"), [(1, 5, True), (10, 30, True), (25, 30, True), (30, 30, False)])
def test_a_slow_video_gives_its_own_frames_in_one_clip(tmp_path: Path, rate: int, fps: int, slower: bool) -> None:
    path = video.write_video(tmp_path / "root" / "slow.mp4", 20, rate=rate)
    dataset, odd = built(path, fps=fps)
    assert dataset.num_clips == 1 and numbers(dataset) == list(range(20))
    assert [line.partition(":")[0] for line in odd] == slower * [
        f"videos of fewer frames per second than --fps {fps}, all of whose frames are taken"
    ]


# ---- any way of building


def test_workers_and_tasks_agree_on_decoded_videos_and_what_is_said(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_streams(root / "b.ts", STREAMS["sizes.ts"])
    write_streams(root / "a.avi", [("mpeg4", SMALL, 40), ("mpeg4", video.SIZE, 40)])
    video.write_video(root / "c.h264", 40, container="h264")
    options: dict[str, Any] = {"shard_size": 40_000, "fps": 15}
    build_shards(root, tmp_path / "one", workers=1, **options)
    build_shards(root, tmp_path / "three", workers=3, **options)
    for task in ("1/2", "0/2"):
        build_shards(root, tmp_path / "tasks", task=task, workers=1, **options)
    build_shards(root, tmp_path / "tasks", finalize=True, **options)
    for other in ("three", "tasks"):
        assert_same(tmp_path / "one", tmp_path / other)
    assert len(ShardDataset(tmp_path / "one").odd) == 2


# ---- how much it will be


@pytest.mark.parametrize("fps", [None, 5.0])
def test_the_guess_of_bytes_is_near(tmp_path: Path, fps: float | None) -> None:
    def draw(number: int) -> np.ndarray:
        return video.picture(number, 320, 240)

    for name in ("a.mp4", "b.mkv", "c.ts"):
        video.write_video(tmp_path / "root" / name, 90, draw=draw)
    shutil.copy(tmp_path / "root" / "a.mp4", tmp_path / "root" / "d.mp4")
    report = build_shards(tmp_path / "root", tmp_path / "out", workers=1, fps=fps)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "root").iterdir()}
    guess = guess_bytes(str(tmp_path / "root"), sizes, Sampling(fps=fps), 1048)
    assert 1 / 1.5 < guess / report.bytes < 1.5
