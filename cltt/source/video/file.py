"""A video file, opened: which of its streams is taken, where its bytes stand, at which packets decoding may begin.

Read by PyAV (FFmpeg). Only containers of video files are opened and only local files: a play list under a video's name
must not make FFmpeg read something else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av.container
    import av.video.stream

VIDEO_EXTENSIONS = (b".mp4", b".m4v", b".mov", b".mkv", b".webm", b".avi", b".mpg", b".mpeg", b".ts", b".mts")
_OPTIONS = {"format_whitelist": "mov,matroska,webm,avi,mpeg,mpegvideo,mpegts", "protocol_whitelist": "file"}
_ATOMS = (
    b"ftyp",
    b"moov",
    b"mdat",
    b"wide",
    b"free",
    b"skip",
    b"pnot",
)  # ISO 14496-12 and QuickTime: a file's first box
_MAGIC = (b"\x1a\x45\xdf\xa3", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")  # EBML; MPEG pack and sequence headers
_SYNC = 0x47  # of every 188-byte packet of a transport stream; .mts has four bytes of time code before each
HEAD_BYTES = 197  # of a file, for :func:`is_video`

Packets = Iterator[Any]  # of av.Packet: PyAV is an extra, imported where a video is met


class InvalidVideo(ValueError):
    """A file that holds no video that can be read; the message is one short phrase."""


def has_video_name(name: bytes) -> bool:
    return name.lower().endswith(VIDEO_EXTENSIONS)


def is_video(head: bytes) -> bool:
    """Whether the first ``HEAD_BYTES`` of a file are those of a container of video."""
    if head.startswith(_MAGIC) or head[4:8] in _ATOMS or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return True
    return any(len(head) > at + 188 and head[at] == head[at + 188] == _SYNC for at in (0, 4))


@contextlib.contextmanager
def opened(path: bytes) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """The container at ``path`` and its first video stream that is no cover picture.

    Raises InvalidVideo if there is none or the file is not what the name says, OSError if it cannot be read at all.
    """
    import av
    import av.stream

    with contextlib.ExitStack() as stack:
        try:
            name: Any = "file:" + path.decode()
        except UnicodeDecodeError:  # PyAV takes no other names
            name = stack.enter_context(open(path, "rb"))
        try:
            container = stack.enter_context(av.open(name, options=_OPTIONS, metadata_errors="ignore"))
        except av.FFmpegError as error:
            if isinstance(error, OSError) and not is_of_the_file(path, -1, error):
                raise
            raise InvalidVideo(f"cannot be opened as a video: {reason_of(error)}") from error
        streams = moving_streams(container)
        if not streams:
            raise InvalidVideo("no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            raise InvalidVideo("a video codec that FFmpeg does not know")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        yield container, stream


# Of a file that gave an input error: where the last one was, and whether the system could read every byte after it.
_suspects: dict[bytes, tuple[int, bool]] = {}
_suspects_lock = threading.Lock()


def is_of_the_file(path: bytes, place: int, error: OSError) -> bool:
    """Whether an input error at packet ``place`` is the file's own, not the file system's.

    FFmpeg says EIO of what it cannot parse too. Such an error comes again at the same place, though the system reads
    every byte of the file both before and after: after alone, a disk that has just recovered would spoil the file.
    """
    if error.errno != errno.EIO:
        return False
    readable = _can_be_read(path)
    with _suspects_lock:
        comes_again = _suspects.get(path) == (place, True)
        _suspects[path] = place, readable
    return comes_again and readable


def _can_be_read(path: bytes) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass
    except OSError:
        return False
    return True


def path_of(container: av.container.InputContainer) -> bytes:
    """The file that :func:`opened` gave."""
    return os.fsencode(container.name).removeprefix(b"file:")


def moving_streams(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """The video streams of a container, cover pictures left out."""
    import av.stream

    return [stream for stream in container.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]


def reason_of(error: Exception) -> str:
    """What FFmpeg says, without paths and numbers: reasons are counted."""
    return str(getattr(error, "strerror", None) or error)


def rate_of(stream: av.video.stream.VideoStream) -> Fraction:
    """Frames a second, as the container has it or as FFmpeg guesses."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def packets_of(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Packets:
    """The packets of ``stream`` from where the container stands, to its end; raises av.FFmpegError where it breaks."""
    for packet in container.demux(stream):
        if packet.size:
            yield packet
        elif packet.dts is None:  # what PyAV sends to flush a decoder
            return


# ---- where decoding may begin


def entry_test(stream: av.video.stream.VideoStream) -> Callable[[Any], bool]:
    """A function that says of a packet whether decoding that begins there gives the same later frames.

    A container's mark of a key frame is enough except for H.264, whose streams mark pictures as key frames that only
    begin a refresh: there it takes an IDR picture, or a recovery point at once (ITU-T H.264, 7.4.1.2.4 and D.2.8).
    """
    if stream.codec_context.name != "h264":
        return lambda packet: bool(packet.is_keyframe)
    extra = stream.codec_context.extradata or b""
    length_size = (extra[4] & 3) + 1 if extra[:1] == b"\x01" and len(extra) > 4 else 0
    return lambda packet: bool(packet.is_keyframe) and _is_clean_h264(bytes(packet), length_size)


_SLICE, _IDR, _SEI = 1, 5, 6
_RECOVERY_POINT = 6  # payload type


def _is_clean_h264(data: bytes, length_size: int) -> bool:
    for unit in _units(data, length_size):
        kind = unit[0] & 31
        if kind == _IDR or (kind == _SEI and _recovers_at_once(unit)):
            return True
        if kind == _SLICE:
            return False
    return False


def _units(data: bytes, length_size: int) -> Iterator[bytes]:
    """NAL units, behind lengths of ``length_size`` bytes or (0) behind start codes."""
    if length_size:
        at = 0
        while at + length_size < len(data):
            size = int.from_bytes(data[at : at + length_size], "big")
            yield data[at + length_size : at + length_size + max(1, size)]
            at += length_size + size
        return
    starts = data.split(b"\0\0\1")
    yield from (unit for unit in starts[1:] if unit)


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an SEI unit holds a recovery point whose count of frames is 0 (its first bit is set then)."""
    at = 1
    while at + 2 < len(unit):
        kind, at = _sei_number(unit, at)
        size, at = _sei_number(unit, at)
        if kind == _RECOVERY_POINT and at < len(unit):
            return unit[at] >= 0x80
        at += size
    return False


def _sei_number(unit: bytes, at: int) -> tuple[int, int]:
    """A payload's type or size: bytes of 255 and a last one, added up; and where the next begins."""
    value = 0
    while at < len(unit) and unit[at] == 0xFF:
        value += 255
        at += 1
    return value + (unit[at] if at < len(unit) else 0), at + 1


def is_hidden(codec: str, packet: Any) -> bool:
    """Whether a packet is decoded but never shown: VP8's alternate reference frames (RFC 6386, 9.1), edit lists."""
    return bool(packet.is_discard) or (codec == "vp8" and not bytes(packet)[0] & 0x10)


def file_identity(path: bytes) -> tuple[int, int]:
    """(size, mtime_ns): what tells that a file is the one that was planned. OSError if it is no regular file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return found.st_size, found.st_mtime_ns
