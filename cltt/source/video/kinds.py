"""Which files are videos, told by name or by first bytes, and which containers FFmpeg may open."""

from __future__ import annotations

import struct
from typing import BinaryIO

# Told by name alone where the bytes say too little: raw streams of one codec.
_RAW_NAMES = (b".h264", b".264", b".avc", b".h265", b".265", b".hevc", b".mjpeg", b".mjpg", b".dv")
VIDEO_EXTENSIONS = (
    *(b".mp4", b".m4v", b".mov", b".mkv", b".webm", b".avi", b".mpg", b".mpeg", b".ts", b".mts", b".m2ts", b".m2t"),
    *(b".wmv", b".asf", b".flv", b".f4v", b".ogv", b".3gp", b".3g2", b".vob", b".divx", b".gif"),
    *_RAW_NAMES,
)
# Kinds of video that are left out by name: FFmpeg reads some of them, but none is common enough to be tested here.
_UNREAD_EXTENSIONS = (
    *(b".rm", b".rmvb", b".ogm", b".nut", b".y4m", b".mxf", b".swf", b".amv", b".ivf", b".wtv", b".dat", b".bik"),
    *(b".braw", b".r3d", b".insv", b".lrf", b".vro", b".nsv", b".mve", b".vid"),
)
_UNREAD_MAGIC = (b".RMF", b"YUV4MPEG2", b"nut/multimedia container", b"DKIF", b"\x06\x0e\x2b\x34")
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts,asf,flv,ogg,h264,hevc,mjpeg,dv,gif"
OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
RAW_FORMATS = ("h264", "hevc", "mjpeg", "mpegvideo")  # no container: no times, and nothing to seek by

# ISO 14496-12 and QuickTime: what a file's first box may be.
_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
# EBML; MPEG pack and sequence headers; ASF's header object; FLV; Ogg; GIF.
_MAGIC = (
    *(b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    *(b"FLV\x01", b"OggS", b"GIF87a", b"GIF89a"),
)
_SYNC = 0x47  # of every packet of a transport stream
_PACKETS = (
    (0, 188),
    (4, 192),
)  # where the first sync stands, and the distance to the next: .m2ts has a time code first
HEAD_BYTES = 197  # of a file, for :func:`is_video`

JOINED = "another recording follows in the file"  # as cat joins them


def has_video_name(name: bytes) -> bool:
    return name.lower().endswith(VIDEO_EXTENSIONS)


def has_raw_name(name: bytes) -> bool:
    """Whether a name says that its file is a raw stream, whose first bytes may be those of a picture."""
    return name.lower().endswith(_RAW_NAMES)


def is_video(head: bytes) -> bool:
    """Whether the first ``HEAD_BYTES`` of a file are those of a container of video."""
    if head.startswith(_MAGIC) or head[4:8] in _ATOMS or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return any(len(head) > at + size and head[at] == head[at + size] == _SYNC for at, size in _PACKETS)


def is_unread_video(name: bytes, head: bytes) -> bool:
    """Whether a file is a video of a kind that is not read."""
    return name.lower().endswith(_UNREAD_EXTENSIONS) or head.startswith(_UNREAD_MAGIC)


def joined_at(file: BinaryIO) -> int | None:
    """Where a second recording begins in an AVI or an MP4, None if there is none.

    FFmpeg reads no second ``moov`` of an MP4, and an AVI has no times that would step back at the joint.
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _second_riff(file)
    return _second_moov(file) if head[4:8] in _ATOMS else None


def _second_riff(file: BinaryIO) -> int | None:
    at = 0
    while True:
        file.seek(at)
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF":
            return None
        if at and head[8:12] == b"AVI ":  # "AVIX" is the same recording beyond a gigabyte
            return at
        (size,) = struct.unpack("<I", head[4:8])
        at += 8 + size + size % 2


def _second_moov(file: BinaryIO) -> int | None:
    at, moovs = 0, 0
    while True:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return None
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack(">Q", head[8:16])
        moovs += kind == b"moov"
        if moovs == 2:
            return at
        if size < 8:  # 0: to the end of the file
            return None
        at += size
