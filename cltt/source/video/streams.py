"""Which video stream of a container is taken, and which part of its pictures players show."""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from cltt.source.video.kinds import mp4_boxes

if TYPE_CHECKING:
    import av.container
    import av.video.stream

_MIN_SHARE = 0.5  # of the longest stream: a shorter one is a preview
_PROBED = 200  # packets


def moving_streams(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """The video streams of a container without those that it marks as covers, thumbnails or stills."""
    from av.stream import Disposition

    other = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
    return [stream for stream in container.streams.video if not stream.disposition & other]


def main_stream(
    container: av.container.InputContainer, streams: list[av.video.stream.VideoStream]
) -> av.video.stream.VideoStream:
    """The stream with the most pixels among those about as long as the longest; the first of equal ones.

    If the container has no lengths, its first packets are read to tell single pictures from videos.
    """
    if len(streams) > 1 and not all(stream.frames or stream_seconds(stream) for stream in streams):
        packets = itertools.islice((packet for packet in container.demux(streams) if packet.size), _PROBED)
        counts = Counter(packet.stream.index for packet in packets)
        lengths = [float(counts[stream.index]) for stream in streams]
    else:
        lengths = [stream_seconds(stream) or float(stream.frames) for stream in streams]
        if max(stream.frames for stream in streams) > 1:
            lengths = [0.0 if stream.frames == 1 else length for stream, length in zip(streams, lengths, strict=True)]
    long = [stream for stream, length in zip(streams, lengths, strict=True) if length >= _MIN_SHARE * max(lengths)]
    return max(long, key=lambda stream: stream.codec_context is not None and stream.width * stream.height)


def stream_seconds(stream: av.video.stream.VideoStream) -> float:
    """The length of a stream by its header; 0 if it has none."""
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0


# ---- the part that players show


class Crop(NamedTuple):
    """Pixels to cut off each side of a decoded picture, before it is turned upright."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        return width - self.left - self.right, height - self.top - self.bottom


WHOLE = Crop()


def crop_of(file: BinaryIO, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Crop:
    """The crop in the container for ``stream`` (MP4 ``clap``, Matroska PixelCrop); WHOLE if none or invalid."""
    width, height = stream.width, stream.height
    if container.format.name.startswith("mov"):
        crop = _clap(file, stream.id, width, height)
    elif container.format.name.startswith("matroska"):
        crop = _pixel_crop(file, container.streams.video.index(stream))
    else:
        return WHOLE
    return crop if min(crop) >= 0 and min(crop.size(width, height)) > 0 else WHOLE


# Boxes of ISO 14496-12; in a sample entry and its table other fields come before the inner boxes.
_PATH = (b"mdia", b"minf", b"stbl", b"stsd")


def _clap(file: BinaryIO, track: int, width: int, height: int) -> Crop:
    for name, *moov in mp4_boxes(file, 0, file.seek(0, 2)):
        for inner, start, stop in mp4_boxes(file, *moov) if name == b"moov" else []:
            if inner == b"trak" and _track_id(file, start, stop) == track:
                return _clap_of_track(file, start, stop, width, height)
    return WHOLE


def _track_id(file: BinaryIO, start: int, stop: int) -> int:
    for name, at, _ in mp4_boxes(file, start, stop):
        if name == b"tkhd":
            file.seek(at)
            data = file.read(24)
            return int.from_bytes(data[20:24] if data[:1] == b"\x01" else data[12:16], "big")
    return -1


def _clap_of_track(file: BinaryIO, start: int, stop: int, width: int, height: int) -> Crop:
    for step in _PATH:
        _, start, stop = next((box for box in mp4_boxes(file, start, stop) if box[0] == step), (b"", 0, 0))
    _, start, stop = next(mp4_boxes(file, start + 8, stop), (b"", 0, 0))
    for name, at, _ in mp4_boxes(file, start + 78, stop):
        if name == b"clap":
            file.seek(at)
            data = file.read(32)
            return _crop_of_clap(data, width, height) if len(data) == 32 else WHOLE
    return WHOLE


def _crop_of_clap(data: bytes, width: int, height: int) -> Crop:
    """``data``: width, height and offsets of the centre, each a fraction (ISO 14496-12, 12.1.4)."""
    numbers = struct.unpack(">8i", data)
    if not all(numbers[1::2]):
        return WHOLE
    wide, high, right, down = (Fraction(numbers[k], numbers[k + 1]) for k in (0, 2, 4, 6))
    left, top = round((width - wide) / 2 + right), round((height - high) / 2 + down)
    return Crop(left, top, width - left - round(wide), height - top - round(high))


# Matroska elements (RFC 9559): a name, a size, then content. The size of Segment may be unknown.
_SEGMENT, _TRACKS, _ENTRY, _TYPE, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0
_CROPS = (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # left, top, right, bottom


def _number(file: BinaryIO, *, keep_mark: bool) -> int:
    """A number of variable length (RFC 8794); -1 at the end of the file, and for an unknown size.

    The first bit set, the mark, tells how many bytes it has; names keep it.
    """
    first = file.read(1)
    if not first or not first[0]:
        return -1
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(more), "big")
    mark = 1 << 7 * (more + 1)
    if keep_mark:
        return value
    return -1 if value == 2 * mark - 1 else value - mark


def _elements(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(name, start and end of the content) of the elements from ``start`` on."""
    while start < stop:
        file.seek(start)
        name, size = _number(file, keep_mark=True), _number(file, keep_mark=False)
        at = file.tell()
        if name < 0 or (size < 0 and name != _SEGMENT):
            return
        start = stop if size < 0 else at + size
        yield name, at, min(stop, start)


def _pixel_crop(file: BinaryIO, number: int) -> Crop:
    """The PixelCrop of the video track with this number."""
    start, stop = 0, file.seek(0, 2)
    for step in (_SEGMENT, _TRACKS):
        _, start, stop = next((found for found in _elements(file, start, stop) if found[0] == step), (0, 0, 0))
    tracks = [list(_elements(file, at, end)) for name, at, end in _elements(file, start, stop) if name == _ENTRY]
    videos = [track for track in tracks if any(name == _TYPE and _value(file, at, end) == 1 for name, at, end in track)]
    for name, at, end in videos[number] if number < len(videos) else []:
        if name == _VIDEO:
            values = {inner: _value(file, *span) for inner, *span in _elements(file, at, end)}
            return Crop(*(values.get(crop, 0) for crop in _CROPS))
    return WHOLE


def _value(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    return int.from_bytes(file.read(min(8, end - start)), "big")
