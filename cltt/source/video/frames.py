"""Frames out of a video file: those asked for, in order, each decoded from a packet where decoding may begin.

What is not asked for is skipped as cheaply as is safe: whole groups between two entries are not sent to the decoder at
all, and pictures to which no other refers are dropped by it. A decoder goes on after an error, with pictures made of
broken ones: from an error to the next entry nothing is given out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cltt.source.video.file import Packets, entry_test, is_of_the_file, opened, packets_of

if TYPE_CHECKING:
    import av
    import av.container
    import av.video.stream

NO_PICTURE = "no picture comes out of the decoder"
FOLLOWS = "cannot be decoded, or follows a picture that cannot be"
FAR_SECONDS = 10.0  # an entry so far ahead is sought, a nearer one read up to
# Containers with a table of their packets. MPEG's streams have none, and what FFmpeg says of a packet's time there
# depends on the packets that it has seen before: they are read from their start, which costs no decoding.
_WITH_INDEX = ("mov", "matroska", "avi")
# A picture may come out so many packets later than those sent after it: the largest reorder depth of H.264.
HOLD_PACKETS = 16
# FFmpeg's decoders whose pictures without the mark of a reference are referred to by none (in HEVC higher temporal
# layers may refer to them; VP9 and AV1 have no such mark).
_DROPS_UNREFERENCED = ("h264", "mpeg4", "mpeg1video", "mpeg2video")


class Wanted(NamedTuple):
    """A frame by its name and the name of the packet where decoding begins (``video.times.Timeline``)."""

    id: int
    entry: int


class _Sent(NamedTuple):
    """A packet given to the decoder: its place since the start, its group, whether it leads the group's entry."""

    place: int
    group: int
    leads: bool


class VideoReader:
    """An open video file; gives frames by name. Not for several threads at once.

    ``max_pixels``: the decoder refuses larger pictures. Raises InvalidVideo or OSError as ``file.opened`` does.
    """

    def __init__(self, path: bytes, timing: str, *, max_pixels: int = (1 << 31) - 1) -> None:
        self._path = path
        self._max_pixels = max_pixels
        self._timing = timing
        self._stack = contextlib.ExitStack()
        self._open()

    def _open(self) -> None:
        self._stack.close()
        self._container, self.stream = self._stack.enter_context(opened(self._path))
        self._context = self.stream.codec_context
        self._context.thread_count = 1  # the workers are the threads
        options = {"max_pixels": str(min(self._max_pixels, (1 << 31) - 1))}  # before memory is taken for a picture
        if self._context.name != "h264":  # whose pictures made up say so; it would refuse to begin at a recovery point
            options["err_detect"] = "explode"
        self._context.options = options
        self._is_entry = entry_test(self.stream)
        self._seeks = self._timing == "pts" and self._container.format.name.startswith(_WITH_INDEX)
        self._place = 0  # of the next packet in the file; after seeking only that it is not the first

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def frames(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        """For each of ``wanted``, which are in the order of time, its frame or why there is none."""
        start = 0
        for stop in range(1, len(wanted) + 1):
            if stop == len(wanted) or self._is_far(wanted[stop - 1], wanted[stop]):
                yield from self._stretch(wanted[start:stop])
                start = stop

    def _is_far(self, before: Wanted, after: Wanted) -> bool:
        if not self._seeks or self.stream.time_base is None:
            return False
        return bool((after.entry - before.id) * self.stream.time_base > FAR_SECONDS)

    def _stretch(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        decoding: _Decoding | None = None
        with contextlib.closing(self._packets_from(wanted[0].entry)) as packets:
            for name, packet in packets:
                if decoding is None:  # not before: to find the first packet the file may have been opened anew
                    self._context.flush_buffers()
                    decoding = _Decoding(self._context, self._timing, wanted)
                entry = self._is_entry(packet) or name == wanted[0].entry
                yield from decoding.send(name, packet, entry)
                if decoding.complete:
                    return
        yield from [NO_PICTURE] * len(wanted) if decoding is None else decoding.finish()

    # ---- finding the packets

    def _packets_from(self, entry: int) -> Generator[tuple[int | None, Any], None, None]:
        """(name, packet) from the packet ``entry`` on, to the end or to where the file breaks."""
        if self._seeks and (found := self._sought(entry)) is not None:
            yield from found
            return
        if self._place != 0:
            self._open()
        reached = False
        for name, packet in self._named():
            reached = reached or name == entry
            if reached:
                yield name, packet

    def _sought(self, entry: int) -> Iterator[tuple[int | None, Any]] | None:
        """As :meth:`_packets_from`, by seeking; None if that did not lead there."""
        import av

        with contextlib.suppress(av.FFmpegError):
            self._place = 1
            self._container.seek(entry, stream=self.stream)
            named = self._named()
            for name, packet in named:
                if name == entry:
                    return _with_first(name, packet, named)
                if name is not None and name > entry and packet.is_keyframe:
                    return None
        return None

    def _named(self) -> Iterator[tuple[int | None, Any]]:
        import av

        packets: Packets = packets_of(self._container, self.stream)
        count = 0
        try:
            for count, packet in enumerate(packets, 1):  # noqa: B007  # where it breaks
                place = self._place
                self._place += 1
                yield packet.pts if self._timing == "pts" else place, packet
        except av.FFmpegError as error:  # the plan has noted that the file breaks here
            if isinstance(error, OSError) and not is_of_the_file(self._path, count, error):
                raise


def _with_first(
    name: int | None, packet: Any, rest: Iterator[tuple[int | None, Any]]
) -> Iterator[tuple[int | None, Any]]:
    yield name, packet
    yield from rest


class _Decoding:
    """Sends packets to a decoder as far as needed, and knows which of the frames that come out are good."""

    def __init__(self, context: Any, timing: str, wanted: Sequence[Wanted]) -> None:
        self._context = context
        self._counts = timing == "count"
        self._has_times = timing == "pts"
        self._drops = context.name in _DROPS_UNREFERENCED and not self._counts
        self._wanted = wanted
        self._positions: dict[int, list[int]] = {}
        for position, one in enumerate(wanted):
            self._positions.setdefault(one.id, []).append(position)
        self._found: dict[int, tuple[av.VideoFrame, _Sent]] = {}
        self._next = 0  # the first of ``wanted`` that is not given out
        self._latest = -1  # the last of them that has come
        self._sent: dict[int, _Sent] = {}
        self._entered: set[int] = set()
        self._waits_for: int | None = wanted[0].entry
        self._place = 0
        self._group = -1
        self._group_name = 0
        self._bad_from: dict[int, int] = {}  # group -> place of its first packet that failed
        self._count = 0  # the name of the next frame that comes, where they are counted

    @property
    def complete(self) -> bool:
        return self._next == len(self._wanted)

    def send(self, name: int | None, packet: Any, entry: bool) -> Iterator[av.VideoFrame | str]:
        """Give a packet to the decoder unless nothing wanted needs it; what is settled then."""
        if self._waits_for is not None and name != self._waits_for:
            return
        if entry and name is not None:
            self._enter(name)
        self._waits_for = None
        self._note(name, packet)
        self._decode(packet)
        after = self._latest + 1  # all before it have come, or never will
        if after < len(self._wanted) and self._wanted[after].entry in self._entered:
            yield from self._settled(hold=HOLD_PACKETS)
            return
        yield from self.finish(after)
        if after < len(self._wanted):
            self._waits_for = self._wanted[after].entry

    def _enter(self, name: int) -> None:
        if self._counts:
            self._drain()
            self._context.flush_buffers()
            self._count = name
        self._group += 1
        self._group_name = name
        self._entered.add(name)

    def _note(self, name: int | None, packet: Any) -> None:
        """Remember the packet under its name, which the decoder hands on as the frame's time stamp."""
        self._place += 1
        packet.pts = None if self._counts else name
        if name is not None:
            leads = self._has_times and name < self._group_name
            self._sent[name] = _Sent(self._place, self._group, leads)
        if packet.is_corrupt:
            self._bad_from.setdefault(self._group, self._place)
        if self._drops:
            self._context.skip_frame = "DEFAULT" if name in self._positions else "NONREF"

    def _decode(self, packet: Any) -> None:
        import av

        try:
            frames = self._context.decode(packet)
        except av.FFmpegError:
            self._bad_from.setdefault(self._group, self._place)
            return
        for frame in frames:
            self._receive(frame)

    def _drain(self) -> None:
        import av

        with contextlib.suppress(av.FFmpegError):
            for frame in self._context.decode(None):
                self._receive(frame)

    def _receive(self, frame: av.VideoFrame) -> None:
        name = self._count if self._counts else frame.pts
        self._count += 1
        sent = self._sent.pop(name, None) if name is not None else None
        if sent is None or name is None:
            return
        if frame.is_corrupt:
            self._bad_from[sent.group] = min(sent.place, self._bad_from.get(sent.group, sent.place))
        for position in self._positions.get(name, ()):
            self._found[position] = frame, sent
            self._latest = max(self._latest, position)

    def _is_bad(self, sent: _Sent) -> bool:
        return sent.place >= self._bad_from.get(sent.group, sent.place + 1) or (
            sent.leads and sent.group - 1 in self._bad_from
        )

    def _settled(self, hold: int) -> Iterator[av.VideoFrame | str]:
        """What can be given out: frames come in the order of time, so one that has been passed does not come.

        An error shows when its picture comes out. By then pictures made of it may have come, so each waits for ``hold``
        more packets.
        """
        while self._next <= self._latest:
            frame, sent = self._found.get(self._next, (None, None))
            if sent is not None and self._place < sent.place + hold:
                return
            self._found.pop(self._next, None)
            self._next += 1
            if frame is None or sent is None:
                yield FOLLOWS if self._bad_from else NO_PICTURE
            else:
                yield FOLLOWS if self._is_bad(sent) else frame

    def finish(self, stop: int | None = None) -> Iterator[av.VideoFrame | str]:
        """Empty the decoder; all wanted before ``stop`` (None: all) is settled then."""
        self._drain()
        self._context.flush_buffers()
        self._sent.clear()
        self._latest = (len(self._wanted) if stop is None else stop) - 1
        yield from self._settled(hold=0)
