"""Frames out of videos: the same whether all are decoded or few, of any container and codec, and of broken files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from cltt.source.video.file import InvalidVideo, opened
from cltt.source.video.frames import FOLLOWS, VideoReader, Wanted
from cltt.source.video.pixels import Upright
from cltt.source.video.timeline import Timeline, sample
from tests.helpers import data, video
from tests.helpers.video import timeline

pytest.importorskip("av")
REAL = sorted((data.SHARED / "video").glob("*.*"))
X264_OPEN = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-pyramid=normal"}
X264_REFRESH = {"x264-params": "intra-refresh=1:keyint=12"}
KINDS: dict[str, dict[str, object]] = {
    "a.mp4": {},
    "a.mkv": {"options": {"bf": "3"}},
    "a.ts": {},
    "open.mts": {"options": X264_OPEN, "container": "mpegts"},
    "refresh.mp4": {"options": X264_REFRESH},
    "counted.avi": {"b_frames": 2},
    "a.mov": {"codec": "mpeg4", "b_frames": 2},
    "a.avi": {"codec": "mpeg4"},
    "a.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "hevc.m4v": {"codec": "libx265", "options": {"x265-params": "log-level=none"}, "container": "mp4"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "8"}},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


def read(path: Path, line: Timeline, places: Sequence[int], short: int | None = None) -> list[np.ndarray | str]:
    """Pixels of the frames at ``places`` of the timeline, or why there are none."""
    wanted = [Wanted(int(line.ids[place]), int(line.entries[place])) for place in places]
    with VideoReader(os.fsencode(path), line.timing) as reader:
        upright = Upright(reader.stream.sample_aspect_ratio, short)
        return [one if isinstance(one, str) else upright.rgb(one)[0] for one in reader.frames(wanted)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in KINDS.items():
        video.write_video(folder / name, 40, **kind)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("first", [10, 11, 12, 14])
def test_a_trim_that_hides_the_whole_first_group_loses_no_frame(tmp_path: Path, first: int) -> None:
    content = bytearray(video.write_video(tmp_path / "a.mp4", 40, options=X264_OPEN).read_bytes())
    edit = content.index(b"elst") + 12  # ISO/IEC 14496-12, 8.6.6: duration in ms, first moment in ticks of the track
    ticks = int.from_bytes(content[edit + 4 : edit + 8], "big") + first * 512
    content[edit : edit + 8] = ((40 - first) * 1000 // 30).to_bytes(4, "big") + ticks.to_bytes(4, "big")
    (tmp_path / "trimmed.mp4").write_bytes(content)
    line = timeline(tmp_path / "trimmed.mp4")
    frames = read(tmp_path / "trimmed.mp4", line, range(len(line.ids)))
    assert [video.number_of(frame) for frame in frames if not isinstance(frame, str)] == list(range(first, 40))
    assert line.notes == []


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_shows_its_number(videos: Path, name: str) -> None:
    line = timeline(videos / name)
    frames = read(videos / name, line, range(len(line.ids)))
    assert [video.number_of(frame) for frame in frames if not isinstance(frame, str)] == list(range(40))


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_the_same_however_many_are_asked_for(videos: Path, name: str) -> None:
    line = timeline(videos / name)
    all_of_them = read(videos / name, line, range(40))
    draws = np.random.default_rng(0)
    choices = [range(0, 40, 7), [39], [0], [11, 12, 13], [5, 5, 30, 30], sorted(draws.choice(40, 9).tolist())]
    for places in choices:
        for place, frame in zip(places, read(videos / name, line, places), strict=True):
            assert isinstance(frame, np.ndarray) and (frame == all_of_them[place]).all(), (places, place)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
@pytest.mark.parametrize("fps", [None, 5.0, 0.7])
def test_real_videos_give_what_decoding_everything_gives(path: Path, fps: float | None) -> None:
    import av

    line = timeline(path)
    places = sample(line, fps, None).frames.tolist()
    frames = read(path, line, places, short=64)
    with av.open(str(path)) as file:
        stream = video.largest(file)
        upright = Upright(stream.sample_aspect_ratio, 64)
        everything = [upright.rgb(frame)[0] for frame in file.decode(stream)]
    assert all((frame == everything[place]).all() for place, frame in zip(places, frames, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_frames_far_apart_in_any_order_are_those_of_one_reading(tmp_path: Path, name: str) -> None:
    path = video.write_video(tmp_path / name, [k % 200 for k in range(700)], **KINDS[name])  # type: ignore[arg-type]
    line = timeline(path)
    with VideoReader(os.fsencode(path), line.timing) as reader:
        upright = Upright(reader.stream.sample_aspect_ratio)
        for places in ([0], [650], [340, 699], [100, 101, 500], [20]):
            wanted = [Wanted(int(line.ids[place]), int(line.entries[place])) for place in places]
            shown = [
                one if isinstance(one, str) else video.number_of(upright.rgb(one)[0]) for one in reader.frames(wanted)
            ]
            assert shown == [place % 200 for place in places]


def test_far_frames_are_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video.write_video(tmp_path / "long.mp4", [k % 200 for k in range(900)], gop=30)
    line = timeline(path)
    sent: list[int] = []
    plain = VideoReader._packets

    def counted(self: VideoReader) -> object:
        for packet in plain(self):
            sent.append(packet.size)
            yield packet

    monkeypatch.setattr(VideoReader, "_packets", counted)
    frames = read(path, line, [0, 450, 890])
    assert [video.number_of(frame) for frame in frames if isinstance(frame, np.ndarray)] == [0, 50, 90]
    assert len(sent) < 200


def test_times_that_run_backwards_keep_both_stretches(tmp_path: Path) -> None:
    first = video.write_video(tmp_path / "a.ts", 30).read_bytes()
    second = video.write_video(tmp_path / "c.ts", range(100, 124)).read_bytes()
    (tmp_path / "b.ts").write_bytes(first + second)
    line = timeline(tmp_path / "b.ts")
    shown = [
        frame if isinstance(frame, str) else video.number_of(frame)
        for frame in read(tmp_path / "b.ts", line, range(54))
    ]
    # FFmpeg marks the last packet before the joint as corrupt, as it cannot know that the file is two.
    assert shown[:27] == list(range(27)) and shown[30:] == list(range(100, 124))


def test_a_key_frame_alone_is_a_video(tmp_path: Path) -> None:
    line = timeline(video.write_video(tmp_path / "one.mp4", 1))
    (frame,) = read(tmp_path / "one.mp4", line, [0])
    assert isinstance(frame, np.ndarray) and video.number_of(frame) == 0


# ---- broken files


def damage_noise(content: bytearray, at: int, rng: random.Random) -> bytes:
    content[at : at + 2000] = rng.randbytes(len(content[at : at + 2000]))
    return bytes(content)


def damage_zeros(content: bytearray, at: int, rng: random.Random) -> bytes:
    content[at : at + 2000] = bytes(len(content[at : at + 2000]))
    return bytes(content)


def damage_hole(content: bytearray, at: int, rng: random.Random) -> bytes:
    return bytes(content[:at] + content[at + 2000 :])


def damage_cut(content: bytearray, at: int, rng: random.Random) -> bytes:
    return bytes(content[:at])


DAMAGES = (damage_noise, damage_zeros, damage_hole, damage_cut)
# VP8, VP9 and HEVC read nearly any bits as a picture: what they do not notice cannot be found.
NOTICED = ("a.mp4", "a.mkv", "a.ts", "open.mts", "a.mov", "a.avi", "a.mpg")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", NOTICED)
def test_of_a_broken_file_the_good_part_is_kept(
    videos: Path, tmp_path: Path, name: str, damage: Callable[[bytearray, int, random.Random], bytes]
) -> None:
    whole = timeline(videos / name)
    good = read(videos / name, whole, range(40))
    content = (videos / name).read_bytes()
    kept = wrong = 0
    for seed in range(6):
        rng = random.Random(seed)
        path = tmp_path / name
        path.write_bytes(damage(bytearray(content), rng.randrange(len(content) // 4, len(content) * 3 // 4), rng))
        try:
            line = timeline(path)
        except InvalidVideo:
            continue  # the tables at its end are gone
        for frame in read(path, line, range(len(line.ids))):
            if isinstance(frame, str):
                continue
            kept += 1
            wrong += min(np.abs(frame.astype(int) - other).mean() for other in good) > 3
    assert kept >= 20 or name.endswith((".mp4", ".mov")), "the part before the damage must be there"
    assert wrong <= kept // 20, "pictures made of broken ones were given out"


def test_from_an_error_to_the_next_entry_nothing_is_given_out(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "a.mp4", 60, gop=20, options={"bf": "3"})
    with opened(os.fsencode(path)) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        places = {packet.pts: (place, packet.pos, packet.size) for place, packet in enumerate(packets)}
    line = timeline(path)
    place, position, size = places[int(line.ids[31])]
    content = bytearray(path.read_bytes())
    content[position + size // 3 : position + size] = random.Random(0).randbytes(size - size // 3)
    path.write_bytes(content)
    frames = read(path, line, range(60))
    lost = [k for k, frame in enumerate(frames) if isinstance(frame, str)]
    assert set(lost) == {
        k for k in range(40) if places[int(line.ids[k])][0] >= 20 and places[int(line.ids[k])][0] >= place
    }
    assert {frames[k] for k in lost} == {FOLLOWS}


# ---- pixels


def flat(colour: tuple[int, int, int], width: int = 64, height: int = 48) -> Callable[[int], np.ndarray]:
    def draw(_: int) -> np.ndarray:
        return np.full((height, width, 3), colour, np.uint8)

    return draw


def to_rgb(y: float, u: float, v: float, *, kr: float, kb: float, full: bool, depth: int = 8) -> np.ndarray:
    """The colour of 8-bit RGB that Y'CbCr code values stand for (ITU-T H.273, equations 20 to 38)."""
    one = 1 << (depth - 8)
    luma = y / ((1 << depth) - 1) if full else (y / one - 16) / 219
    blue, red = ((c - 128 * one) / ((1 << depth) - 1) if full else (c / one - 128) / 224 for c in (u, v))
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.round(255 * np.array([r, g, b])), 0, 255)


MATRICES = {"bt709": (1, 0.2126, 0.0722), "smpte170m": (6, 0.299, 0.114), "bt2020nc": (9, 0.2627, 0.0593)}


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_go_by_the_tags(tmp_path: Path, pix_fmt: str, full: bool, matrix: str) -> None:
    import av

    number, kr, kb = MATRICES[matrix]
    depth = 10 if "10" in pix_fmt else 8
    codes = [round(value * (1 << (depth - 8))) for value in (120, 90, 170)]
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"qp": "0"} if depth == 8 else {"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = number, 2 if full else 1
        frame = av.VideoFrame(64, 48, pix_fmt)
        for plane, code in zip(frame.planes, codes, strict=True):
            kind = np.uint8 if depth == 8 else np.uint16
            plane.update(np.full(plane.buffer_size // np.dtype(kind).itemsize, code, kind).tobytes())
        frame.colorspace, frame.color_range = number, 2 if full else 1
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    (pixels,) = read(tmp_path / "a.mp4", timeline(tmp_path / "a.mp4"), [0])
    expected = to_rgb(*codes, kr=kr, kb=kb, full=full, depth=depth)
    assert isinstance(pixels, np.ndarray) and pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 3, (pixels[0, 0], expected)


def test_without_tags_players_rule_holds(tmp_path: Path) -> None:
    for height, (kr, kb) in {48: (0.299, 0.114), 720: (0.2126, 0.0722)}.items():
        path = video.write_video(tmp_path / f"{height}.mp4", 1, draw=flat((200, 60, 40), 64, height))
        import av

        with av.open(str(path)) as file:
            planes = [np.frombuffer(plane, np.uint8)[0] for plane in next(file.decode(video=0)).planes]
        (pixels,) = read(path, timeline(path), [0])
        assert isinstance(pixels, np.ndarray)
        assert np.abs(pixels[10, 10].astype(int) - to_rgb(*planes, kr=kr, kb=kb, full=False)).max() <= 3


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_the_display_matrix_lays_frames_upright(tmp_path: Path, angle: int) -> None:
    path = video.write_video(
        tmp_path / "turned.mp4",
        3,
        prepare=lambda stream: stream.set_display_rotation(angle),  # type: ignore[attr-defined]
    )
    plain = video.write_video(tmp_path / "plain.mp4", 3)
    (turned,), (straight,) = (read(one, timeline(one), [1]) for one in (path, plain))
    assert isinstance(straight, np.ndarray)
    assert (turned == np.rot90(straight, angle // 90)).all()  # the matrix turns counter-clockwise


def test_pixels_come_out_square(tmp_path: Path) -> None:
    from fractions import Fraction

    def prepare(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)  # type: ignore[attr-defined]

    path = video.write_video(tmp_path / "wide.mkv", 2, prepare=prepare)
    line = timeline(path)
    assert [frame.shape for frame in read(path, line, [0, 1]) if isinstance(frame, np.ndarray)] == 2 * [(80, 171, 3)]
    (small,) = read(path, line, [0], short=40)
    assert isinstance(small, np.ndarray) and small.shape == (40, 86, 3)


def test_odd_sizes_keep_their_last_line_and_column(tmp_path: Path) -> None:
    def draw(_: int) -> np.ndarray:
        pixels = np.zeros((51, 77, 3), np.uint8)
        pixels[:, -1], pixels[-1] = 255, 255
        return pixels

    path = video.write_video(tmp_path / "odd.mkv", 1, draw=draw, codec="ffv1", pix_fmt="yuv444p")
    (pixels,) = read(path, timeline(path), [0])
    assert isinstance(pixels, np.ndarray) and pixels.shape == (51, 77, 3)
    assert pixels[:, -1].min() > 240 and pixels[-1].min() > 240 and pixels[:-1, :-1].max() < 15


@pytest.mark.parametrize("short", [100, 64, 43, 32])
def test_shrinking_averages_over_areas(tmp_path: Path, short: int) -> None:
    import cv2

    def draw(number: int) -> np.ndarray:
        return np.ascontiguousarray(data.frame_image(3, number, 128, 192))

    path = video.write_video(tmp_path / "a.mkv", 1, draw=draw, codec="ffv1", pix_fmt="yuv444p")
    (full,), (small,) = (read(path, timeline(path), [0], size) for size in (None, short))
    assert isinstance(full, np.ndarray) and isinstance(small, np.ndarray)
    assert small.shape == (short, round(192 * short / 128), 3)
    expected = cv2.resize(full, small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 1
