"""A video file, opened, and its packets; what an input error means.

Read by PyAV (FFmpeg). Only containers of video files are opened and only local files: a play list under a video's name
must not make FFmpeg read something else.
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

Packets = Iterator[Any]  # of av.Packet: PyAV is an extra, imported where a video is met


class InvalidVideo(ValueError):
    """A file that holds no video that can be read; the message is one short phrase."""


@contextlib.contextmanager
def opened(
    path: bytes, number: int | None = None
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """The container at ``path`` and its video stream of this ``number``; None: ``streams.main_stream``.

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
            container = stack.enter_context(av.open(name, options=kinds.OPTIONS, metadata_errors="ignore"))
        except av.FFmpegError as error:
            if isinstance(error, OSError) and not is_of_the_file(path, -1, error):
                raise
            raise InvalidVideo(f"cannot be opened as a video: {reason_of(error)}") from error
        stream, is_fresh = _stream(container, number)
        if not is_fresh:
            number = [other.index for other in container.streams.video].index(stream.index)
            container.close()
            yield stack.enter_context(opened(path, number))
            return
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        yield container, stream


def _stream(container: av.container.InputContainer, number: int | None) -> tuple[av.video.stream.VideoStream, bool]:
    """(the stream to take, whether nothing has been read to choose it)."""
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


def is_hidden(codec: str, packet: Any) -> bool:
    """Whether a packet is decoded but never shown: VP8's alternate reference frames (RFC 6386, 9.1), edit lists."""
    return bool(packet.is_discard) or (codec == "vp8" and not bytes(packet)[0] & 0x10)


def file_identity(path: bytes) -> tuple[int, int]:
    """(size, mtime_ns): what tells that a file is the one that was planned. OSError if it is no regular file."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return found.st_size, found.st_mtime_ns
