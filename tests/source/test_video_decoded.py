"""Videos whose packets are not their frames: what is shown, in which order and when is what decoding gives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltt.source.video.frames import VideoReader, Wanted
from cltt.source.video.pixels import Upright
from cltt.source.video.timeline import BACKWARDS, DECODED, PACKETS, Timeline, sample
from tests.helpers import paff, video
from tests.helpers.video import timeline

pytest.importorskip("av")
FPS = 30


def shown(path: Path, fps: float | None = None) -> tuple[Timeline, list[list[tuple[int, float]]]]:
    """The timeline, and of each part the numbers that its frames show with their times in the part."""
    line = timeline(path)
    taken = sample(line, fps, None)
    wanted = [Wanted(int(line.ids[place]), int(line.entries[place])) for place in taken.frames]
    with VideoReader(os.fsencode(path), line.timing) as reader:
        upright = Upright(reader.stream.sample_aspect_ratio, crop=reader.crop)
        numbers = [
            -1 if isinstance(frame, str) else video.number_of(upright.rgb(frame)[0]) for frame in reader.frames(wanted)
        ]
    parts: list[list[tuple[int, float]]] = []
    for number, time, begins in zip(numbers, line.times[taken.frames].tolist(), taken.begins, strict=True):
        if begins:
            parts.append([])
            start = time
        parts[-1].append((number, round(time - start, 4)))
    return line, parts


def evenly(numbers: Sequence[int], step: float = 1 / FPS) -> list[tuple[int, float]]:
    return [(number, round(place * step, 4)) for place, number in enumerate(numbers)]


def check_all_and_few(path: Path, count: int, timing: str = DECODED) -> None:
    line, parts = shown(path)
    assert line.timing == timing and parts == [evenly(range(count))]
    assert shown(path, FPS / 6)[1] == [evenly(range(0, count, 6), 6 / FPS)]


def packets_of(path: Path) -> list[Any]:
    import av

    with av.open(str(path)) as file:
        return [(bytes(packet), packet.pts, packet.dts) for packet in file.demux(video=0) if packet.size]


def mux(path: Path, packets: Sequence[tuple[bytes, int | None, int | None]], like: Path, **options: str) -> Path:
    """Write ``packets`` (bytes, pts, dts in half frames) as they are into a container, described as in ``like``."""
    import av

    with av.open(str(like)) as source, av.open(str(path), "w", options=options) as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for data, pts, dts in packets:
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 2 * FPS)
            packet.pts, packet.dts = pts, dts
            file.mux(packet)
    return path


def copied(path: Path, to: Path) -> Path:
    """As ``ffmpeg -c copy`` does."""
    import av

    with av.open(str(path)) as source, av.open(str(to), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    return to


# ---- pictures of single fields


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[bytes, bytes]]]:
    """A raw stream of single fields, and these in pairs."""

    def grey() -> Iterator[np.ndarray]:
        for number in range(24):
            tall = np.zeros((96, 128), np.uint8)
            tall[:80] = video.picture(number).mean(-1)
            yield tall

    pairs = list(paff.fields(grey()))
    path = tmp_path_factory.mktemp("fields") / "raw.h264"
    path.write_bytes(b"".join(top + bottom for top, bottom in pairs))
    return path, pairs


# A field a packet, or two: https://github.com/FFMS/ffms2/pull/408; a field a block of Matroska:
# https://github.com/jellyfin/jellyfin/pull/4369 and https://github.com/mbunkus/mkvtoolnix/issues/1424
@pytest.mark.parametrize("name", ["one.ts", "two.ts", "two.mkv", "one.mp4", "raw.h264"])
def test_two_fields_are_one_frame(tmp_path: Path, fields: tuple[Path, list[tuple[bytes, bytes]]], name: str) -> None:
    raw, pairs = fields
    if name == "raw.h264":
        path = raw
    else:
        joined = [(top + bottom, 2 * k, 2 * k) for k, (top, bottom) in enumerate(pairs)]
        halves = [field for pair in pairs for field in pair]
        single = [(field, k, k) for k, field in enumerate(halves)]
        path = mux(tmp_path / name, joined if name.startswith("one") else single, raw)
    line = timeline(path)
    with VideoReader(os.fsencode(path), line.timing) as reader:
        upright = Upright(None)
        pixels = [upright.rgb(frame)[0] for frame in reader.frames([Wanted(int(k), 0) for k in line.ids])]
    assert line.timing == DECODED and [video.number_of(one[:80]) for one in pixels] == list(range(24))
    torn = [np.abs(one[0::2].astype(int) - one[1::2]).mean() for one in pixels]
    assert max(torn) < 2 * np.median(torn)  # both fields are of one picture
    rate = 25 if name == "raw.h264" else FPS  # a stream without a container has no times
    assert line.times == pytest.approx(np.arange(24) / rate, abs=6e-4)


# ---- MPEG-4 and H.264 in AVI


def packed(packets: Sequence[bytes]) -> list[bytes]:
    """As DivX and XviD pack them: a P picture and the B picture behind it in a packet, then one that codes nothing."""

    def kind(data: bytes) -> str:
        return "IPBS"[data[data.index(b"\0\0\1\xb6") + 4] >> 6]

    chunks: list[bytes] = []
    at = 0
    while at < len(packets):
        data = packets[at]
        if kind(data) == "I":
            place = data.index(b"\0\0\1\xb6")
            data = data[:place] + b"\0\0\1\xb2DivX503b1393p\0" + data[place:]
        if at + 1 < len(packets) and kind(packets[at + 1]) == "B":
            chunks += [data + packets[at + 1], b"\0\0\1\xb6\x50\x00\x7f"]
            at += 1
        else:
            chunks.append(data)
        at += 1
    return chunks


# https://github.com/superuser404notfound/AetherEngine/issues/516 and https://github.com/bytedeco/javacv/issues/841;
# copied to another container: https://github.com/nschlia/ffmpegfs/issues/162
@pytest.mark.parametrize("name", ["packed.avi", "packed.mkv", "packed.mp4"])
@pytest.mark.parametrize("options", [{}, {"flags": "+cgop"}], ids=["open", "closed"])
def test_packed_b_frames_come_in_order(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    # 49: the last picture is no B, whose place FFmpeg would not know
    plain = video.write_video(
        tmp_path / "plain.avi", 49, codec="mpeg4", b_frames=1, options={"sc_threshold": "1000000000", **options}
    )
    chunks = packed([data for data, _, _ in packets_of(plain)])
    path = mux(tmp_path / "packed.avi", [(data, 2 * k, 2 * k) for k, data in enumerate(chunks)], plain)
    if name != "packed.avi":
        path = copied(path, tmp_path / name)
    line, parts = shown(path)
    numbers = [number for part in parts for number, _ in part]
    assert line.timing == DECODED and numbers == list(range(len(numbers))) and len(numbers) >= 47
    assert len(parts) <= 2
    for part in parts:  # Matroska has milliseconds
        assert [time for _, time in part] == pytest.approx(np.arange(len(part)) / FPS, abs=2e-3)


# https://github.com/zoriya/Kyoo/pull/602
@pytest.mark.parametrize("params", ["open-gop=1:keyint=12:bframes=2", "keyint=12:bframes=3:b-pyramid=normal"])
def test_h264_in_avi_has_no_times_and_is_counted(tmp_path: Path, params: str) -> None:
    check_all_and_few(video.write_video(tmp_path / "a.avi", 60, options={"x264-params": params}), 60)


def test_pictures_left_out_of_an_avi_leave_their_time(tmp_path: Path) -> None:
    """After https://github.com/FFMS/ffms2/issues/3: empty chunks stand for pictures that come twice."""
    times = [k if k < 10 else k + 4 for k in range(30)]
    plain = video.write_video(tmp_path / "plain.avi", 30, codec="mpeg4")
    chunks = [(data, 2 * time, 2 * time) for (data, _, _), time in zip(packets_of(plain), times, strict=True)]
    line, parts = shown(mux(tmp_path / "a.avi", chunks, plain))
    assert [[number for number, _ in part] for part in parts] == [list(range(30))]
    assert line.times * FPS == pytest.approx(times, abs=0.01)


# ---- several pictures in a packet, packets without times


# https://github.com/anibali/tvl/issues/5
@pytest.mark.parametrize("name", ["pairs.ts", "pairs.mkv", "pairs.mp4"])
def test_two_pictures_in_a_packet_are_two_frames(tmp_path: Path, name: str) -> None:
    like = tmp_path / f"plain{Path(name).suffix}"
    plain = [data for data, _, _ in packets_of(video.write_video(like, 48, b_frames=0))]
    pairs = [(plain[k] + plain[k + 1], 2 * k, 2 * k) for k in range(0, 48, 2)]
    line, parts = shown(mux(tmp_path / name, pairs, like))
    assert line.timing == DECODED and [number for part in parts for number, _ in part] == list(range(48))
    assert len(parts) == 1 and line.times == pytest.approx(np.arange(48) / FPS, abs=2e-3)


def test_what_is_sure_is_not_decoded(tmp_path: Path) -> None:
    for name, kind in {
        "a.mp4": {},
        "a.mkv": {"options": {"x264-params": "slices=4:bframes=3"}},
        "a.mov": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
        "a.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
        "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    }.items():
        line = timeline(video.write_video(tmp_path / name, 12, **kind))  # type: ignore[arg-type]
        assert (line.timing, line.why) == (PACKETS, ""), name


def test_an_interlaced_stream_is_not_sure(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "a.mp4", 24, options={"x264-params": "interlaced=1"})
    line, parts = shown(path)
    assert line.timing == DECODED and [number for number, _ in parts[0]] == list(range(24))


# ---- times that step back


# Recordings joined by cat: https://github.com/gpac/gpac/issues/1236; a clock that jumps within a segment:
# https://github.com/blakeblackshear/frigate/issues/2603
@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.webm", "a.mpg", "a.avi", "early.ts", "early.mkv"])
def test_a_recording_behind_another_is_a_clip_of_its_own(tmp_path: Path, name: str) -> None:
    kind: dict[str, Any] = {"b_frames": 0}
    kind["codec"] = {"a.webm": "libvpx", "a.mpg": "mpeg2video", "a.avi": "mpeg4"}.get(name, "libx264")
    late = {"times": lambda k: 4 + k / FPS} if name.startswith("early") else {}  # the second clock begins earlier
    one = video.write_video(tmp_path / f"one{name}", 30, **kind, **late)
    two = video.write_video(tmp_path / f"two{name}", range(100, 130), **kind)
    (tmp_path / name).write_bytes(one.read_bytes() + two.read_bytes())
    line, parts = shown(tmp_path / name)
    *before, second = ([number for number, _ in part if number >= 0] for part in parts)
    first = [number for part in before for number in part]  # FFmpeg repeats a time within the program stream
    assert len(before) == 1 or name == "a.mpg"
    # FFmpeg marks the last packets of a transport stream before the joint as corrupt.
    assert second == list(range(100, 130)) and first == list(range(len(first))) and len(first) >= 27
    assert line.times[0] == 0 and (np.diff(line.times) > 0).all()
    assert BACKWARDS in {note.reason for note in sample(line, None, None).notes}


def test_a_second_recording_that_is_not_read_is_said(tmp_path: Path) -> None:
    first, second = (video.write_video(tmp_path / f"{k}.mp4", 20).read_bytes() for k in range(2))
    (tmp_path / "joined.mp4").write_bytes(first + second)
    line, parts = shown(tmp_path / "joined.mp4")
    assert len(parts) == 1 and [note.reason for note in line.notes] == ["another recording follows in the file"]


# ---- fields of HEVC


# https://github.com/Multicorewareinc/x265/issues/15, https://github.com/MediaArea/MediaInfoLib/pull/2637
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_fields_of_hevc_are_said_to_be_fields(tmp_path: Path, name: str) -> None:
    options = {"x265-params": "log-level=none:interlace=tff"}
    path = video.write_video(tmp_path / name, 12, codec="libx265", options=options)
    line = timeline(path)
    assert line.timing == DECODED and line.fields
    plain = video.write_video(tmp_path / f"plain{name}", 12, codec="libx265", options={"x265-params": "log-level=none"})
    assert not timeline(plain).fields


def test_videos_decoded_by_several_threads_are_as_by_one(tmp_path: Path) -> None:
    """PyAV finds what is attached to a packet by its address, and small numbers share theirs."""
    one = video.write_video(tmp_path / "one.ts", 40)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() * 2)
    alone = timeline(joined)
    assert alone.timing == DECODED
    with ThreadPoolExecutor(4) as pool:
        for line in pool.map(timeline, [joined] * 60):
            assert line.notes == alone.notes and np.array_equal(line.ids, alone.ids)
            assert np.array_equal(line.times, alone.times) and np.array_equal(line.entries, alone.entries)
