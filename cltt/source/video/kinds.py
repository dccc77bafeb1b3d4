"""Which files are videos, by name or by first bytes, and which containers FFmpeg may open."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import BinaryIO

# Raw streams of one codec, which are known by name only: their first bytes are not unique.
_RAW_NAMES = (b".h264", b".264", b".avc", b".h265", b".265", b".hevc", b".mjpeg", b".mjpg", b".dv")
VIDEO_EXTENSIONS = (
    *(b".mp4", b".m4v", b".mov", b".mkv", b".webm", b".avi", b".mpg", b".mpeg", b".ts", b".mts", b".m2ts", b".m2t"),
    *(b".wmv", b".asf", b".flv", b".f4v", b".ogv", b".3gp", b".3g2", b".vob", b".divx", b".gif"),
    *_RAW_NAMES,
)
# Videos that are left out by name. FFmpeg reads some of them, but they are too rare to be tested here.
_UNREAD_EXTENSIONS = (
    *(b".rm", b".rmvb", b".ogm", b".nut", b".y4m", b".mxf", b".swf", b".amv", b".ivf", b".wtv", b".dat", b".bik"),
    *(b".braw", b".r3d", b".insv", b".lrf", b".vro", b".nsv", b".mve", b".vid"),
)
_UNREAD_MAGIC = (b".RMF", b"YUV4MPEG2", b"nut/multimedia container", b"DKIF", b"\x06\x0e\x2b\x34")
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,h264,hevc,mjpeg,dv,gif"
OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
RAW_FORMATS = ("h264", "hevc", "mjpeg", "mpegvideo")  # no container: no times, no seeking

# ISO 14496-12 and QuickTime: names of the first box of a file.
_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
# EBML; MPEG pack and sequence headers; ASF's header object; FLV; Ogg; GIF.
_MAGIC = (
    *(b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    *(b"FLV\x01", b"OggS", b"GIF87a", b"GIF89a"),
)
_SYNC = 0x47  # of every packet of a transport stream
_PACKETS = ((0, 188), (4, 192))  # (offset of the first sync byte, packet size); .m2ts has a time code before each
HEAD_BYTES = 197  # of a file, for :func:`is_video`

JOINED = "another recording follows in the file"  # joined by cat


def has_video_name(name: bytes) -> bool:
    return name.lower().endswith(VIDEO_EXTENSIONS)


def has_raw_name(name: bytes) -> bool:
    """Whether a file of this name is a raw stream, whose first bytes may be those of an image."""
    return name.lower().endswith(_RAW_NAMES)


def is_video(head: bytes) -> bool:
    """Whether the first ``HEAD_BYTES`` of a file are those of a video container."""
    if head.startswith(_MAGIC) or head[4:8] in _ATOMS or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return any(len(head) > at + size and head[at] == head[at + size] == _SYNC for at, size in _PACKETS)


def is_unread_video(name: bytes, head: bytes) -> bool:
    """Whether a file is a video of a kind that is not read here."""
    return name.lower().endswith(_UNREAD_EXTENSIONS) or head.startswith(_UNREAD_MAGIC)


def joined_at(file: BinaryIO) -> int | None:
    """The offset in bytes of a second recording in an AVI or MP4 file; None if there is none.

    FFmpeg does not read the second ``moov`` of an MP4, and an AVI has no time stamps that would step back there.
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _second_riff(file)
    boxes = mp4_boxes(file, 0, file.seek(0, 2)) if head[4:8] in _ATOMS else ()
    return next(itertools.islice((start for name, start, _ in boxes if name == b"moov"), 1, None), None)


def _second_riff(file: BinaryIO) -> int | None:
    at = 0
    while True:
        file.seek(at)
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF":
            return None
        if at and head[8:12] == b"AVI ":  # "AVIX" continues the same recording beyond 1 GB
            return at
        (size,) = struct.unpack("<I", head[4:8])
        at += 8 + size + size % 2


def mp4_boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start and end of the content) of the boxes from ``start`` to ``stop`` (ISO 14496-12, 4.2)."""
    while start + 8 <= stop:
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        size, name = struct.unpack(">I4s", head[:8])
        skip = 8
        if size == 1 and len(head) == 16:
            (size,), skip = struct.unpack(">Q", head[8:]), 16
        size = size or stop - start  # 0: to the end
        if size < skip:
            return
        yield name, start + skip, min(stop, start + size)
        start += size
