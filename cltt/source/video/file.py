"""Opening a video file, reading its packets, and telling damaged files from failing storage.

PyAV (FFmpeg) reads them. It may open only containers of video and only local files, so that a play list under a
video's name cannot make it read something else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from cltt.source.video import kinds, streams

if TYPE_CHECKING:
    import av.container
    import av.video.stream


class InvalidVideo(ValueError):
    """A file that holds no readable video; the message is a short phrase."""


@contextlib.contextmanager
def opened(
    path: bytes, number: int | None = None
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """The open container at ``path`` and its video stream ``number``; None: ``streams.main_stream``.

    No packet has been read. Raises InvalidVideo if there is no such stream or the file is no video,
    OSError if the file cannot be read.
    """
    import av
    import av.stream

    with contextlib.ExitStack() as stack:
        try:
            name: Any = "file:" + path.decode()
        except UnicodeDecodeError:  # PyAV takes no other names
            name = stack.enter_context(open(path, "rb"))
        try:
            container = stack.enter_context(av.open(name, options=kinds.OPTIONS, metadata_errors="ignore"))
        except av.FFmpegError as error:
            if not is_damaged(path, -1, error):
                raise
            raise InvalidVideo(f"cannot be opened as a video: {reason_of(error)}") from error
        stream, is_fresh = _stream(container, number)
        if not is_fresh:
            number = container.streams.video.index(stream)
            container.close()
            yield stack.enter_context(opened(path, number))
            return
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        yield container, stream


def _stream(container: av.container.InputContainer, number: int | None) -> tuple[av.video.stream.VideoStream, bool]:
    """(the stream to take, whether it was chosen without reading packets)."""
    moving = streams.moving_streams(container)
    if number is None and not moving:
        raise InvalidVideo("no video stream")
    if number is not None and number >= len(container.streams.video):
        raise InvalidVideo(f"no video stream {number}")
    is_fresh = number is not None or len(moving) == 1
    stream = streams.main_stream(container, moving) if number is None else container.streams.video[number]
    if stream.codec_context is None:
        raise InvalidVideo("a video codec that FFmpeg does not know")
    return stream, is_fresh


# Of each file with an input error: the packet of the last one, and whether the whole file could be read after it.
_suspects: dict[bytes, tuple[int, bool]] = {}
_suspects_lock = threading.Lock()


def is_damaged(path: bytes, place: int, error: Exception) -> bool:
    """Whether FFmpeg's ``error`` at packet ``place`` comes from a damaged file, not from the file system.

    FFmpeg raises EIO for what it cannot parse, too. The file counts as damaged if the error comes twice at the same
    packet and the whole file could be read after both: after one error, a disk may just have recovered.
    """
    if not isinstance(error, OSError):
        return True
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
    """The path of a container that :func:`opened` gave."""
    return os.fsencode(container.name).removeprefix(b"file:")


def reason_of(error: Exception) -> str:
    """FFmpeg's error text without paths and numbers, so that reports can count equal reasons."""
    return str(getattr(error, "strerror", None) or error)


def rate_of(stream: av.video.stream.VideoStream) -> Fraction:
    """Frames per second, as the container has it or as FFmpeg guesses; 25 if neither."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def packets_of(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Iterator[Any]:
    """The packets of ``stream`` (av.Packet) from the container's position to its end.

    Raises av.FFmpegError where the file is damaged.
    """
    for packet in container.demux(stream):
        if packet.size:
            yield packet
        elif packet.dts is None:  # what PyAV sends to flush a decoder
            return


def seconds_of(stamps: Any, stream: av.video.stream.VideoStream) -> Any:
    """Time stamps [n] in ticks of ``stream`` as float64 seconds [n] from the first of them."""
    base = time_base_of(stream)
    return (stamps - stamps[:1]) * base.numerator / base.denominator


def time_base_of(stream: av.video.stream.VideoStream) -> Fraction:
    """Seconds per tick."""
    return stream.time_base or 1 / rate_of(stream)


def is_hidden(codec: str, packet: Any) -> bool:
    """Whether a packet is decoded but never shown: VP8 alternate reference frames (RFC 6386, 9.1), edit lists."""
    return bool(packet.is_discard) or (codec == "vp8" and not bytes(packet)[0] & 0x10)


def file_identity(path: bytes) -> tuple[int, int]:
    """(size, mtime_ns), which change when a file does; OSError unless it is a regular file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return found.st_size, found.st_mtime_ns
