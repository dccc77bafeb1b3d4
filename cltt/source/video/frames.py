"""Frames out of a video file: those asked for, in order, each decoded from a packet where decoding may begin.

Where frames are named by their packets (``timeline.PACKETS``), what is not asked for is skipped as cheaply as is safe:
whole groups between two entries are not sent to the decoder at all, and pictures to which no other refers are dropped
by it. A decoder goes on after an error, with pictures made of broken ones: from an error to the next entry nothing is
given out. Where frames are named by their count, all before them are decoded.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cltt.source.video.decoded import BAD, Decoder, prepared
from cltt.source.video.file import is_of_the_file, opened, packets_of
from cltt.source.video.streams import crop_of
from cltt.source.video.timeline import PACKETS
from cltt.source.video.units import entry_test

if TYPE_CHECKING:
    import av
    import av.container
    import av.video.stream

NO_PICTURE = "no picture comes out of the decoder"
FOLLOWS = "cannot be decoded, or follows a picture that cannot be"
FAR_SECONDS = 10.0  # an entry so far ahead is sought, a nearer one read up to
# A picture may come out so many packets later than those sent after it: the largest reorder depth of H.264.
HOLD_PACKETS = 16
# FFmpeg's decoders whose pictures without the mark of a reference are referred to by none (in HEVC higher temporal
# layers may refer to them; VP9 and AV1 have no such mark).
_DROPS_UNREFERENCED = ("h264",)


class Wanted(NamedTuple):
    """A frame by its name and the name of the packet where decoding begins (``timeline.Timeline``)."""

    id: int
    entry: int


class _Sent(NamedTuple):
    """A packet given to the decoder: its place since the start, its group, whether it leads the group's entry."""

    place: int
    group: int
    leads: bool


class VideoReader:
    """An open video file; gives frames by name. Not for several threads at once.

    ``number``: of the stream, None: ``streams.main_stream``. ``max_pixels``: the decoder refuses larger pictures.
    Raises InvalidVideo or OSError as ``file.opened`` does.
    """

    def __init__(self, path: bytes, timing: str, *, number: int | None = None, max_pixels: int = (1 << 31) - 1) -> None:
        self._path = path
        self._number = number
        self._max_pixels = max_pixels
        self._by_packets = timing == PACKETS
        self._stack = contextlib.ExitStack()
        self._open()
        with open(path, "rb") as file:
            self.crop = crop_of(file, self._container, self.stream)

    def _open(self) -> None:
        self._stack.close()
        self._container, self.stream = self._stack.enter_context(opened(self._path, self._number))
        if self._by_packets:
            self._context = prepared(self.stream, self._max_pixels)
            self._is_entry = entry_test(self.stream)
        else:
            self._counted = enumerate(Decoder(self._container, self.stream, self._max_pixels).frames())
        self._next = 0  # of the packets or frames in the file; after seeking only that it is not the first

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def frames(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        """For each of ``wanted``, which are in the order of the timeline, its frame or why there is none."""
        if not self._by_packets:
            yield from self._count(wanted)
            return
        start = 0
        for stop in range(1, len(wanted) + 1):
            if stop == len(wanted) or self._is_far(wanted[stop - 1], wanted[stop]):
                yield from self._stretch(wanted[start:stop])
                start = stop

    def _count(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        if any(BAD != one.id < self._next for one in wanted[:1]):
            self._open()
        last: tuple[int, Any] = BAD, NO_PICTURE
        for one in wanted:
            if one.id == BAD:
                yield FOLLOWS
                continue
            while last[0] < one.id:
                self._next, (frame, _) = next(self._counted, (one.id, (NO_PICTURE, 0)))
                last = self._next, frame
                self._next += 1
            yield last[1]

    def _is_far(self, before: Wanted, after: Wanted) -> bool:
        if self.stream.time_base is None:
            return False
        return bool((after.entry - before.id) * self.stream.time_base > FAR_SECONDS)

    def _stretch(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        decoding: _Decoding | None = None
        with contextlib.closing(self._packets_from(wanted[0].entry)) as packets:
            for packet in packets:
                if decoding is None:  # not before: to find the first packet the file may have been opened anew
                    self._context.flush_buffers()
                    decoding = _Decoding(self._context, wanted)
                entry = self._is_entry(packet) or packet.pts == wanted[0].entry
                yield from decoding.send(packet, entry)
                if decoding.complete:
                    return
        yield from [NO_PICTURE] * len(wanted) if decoding is None else decoding.finish()

    # ---- finding the packets

    def _packets_from(self, entry: int) -> Generator[Any, None, None]:
        """The packets from the one stamped ``entry`` on, to the end or to where the file breaks."""
        if (found := self._sought(entry)) is not None:
            yield from found
            return
        if self._next != 0:
            self._open()
        reached = False
        for packet in self._packets():
            reached = reached or packet.pts == entry
            if reached:
                yield packet

    def _sought(self, entry: int) -> Iterator[Any] | None:
        """As :meth:`_packets_from`, by seeking; None if that did not lead there."""
        import av

        with contextlib.suppress(av.FFmpegError):
            self._next = 1
            self._container.seek(entry, stream=self.stream)
            packets = self._packets()
            for packet in packets:
                if packet.pts == entry:
                    return itertools.chain([packet], packets)
                if packet.pts is not None and packet.pts > entry and packet.is_keyframe:
                    return None
        return None

    def _packets(self) -> Iterator[Any]:
        import av

        count = 0
        try:
            for count, packet in enumerate(packets_of(self._container, self.stream), 1):  # noqa: B007  # where it breaks
                self._next += 1
                yield packet
        except av.FFmpegError as error:  # the plan has noted that the file breaks here
            if isinstance(error, OSError) and not is_of_the_file(self._path, count, error):
                raise


class _Decoding:
    """Sends packets to a decoder as far as needed, and knows which of the frames that come out are good."""

    def __init__(self, context: Any, wanted: Sequence[Wanted]) -> None:
        self._context = context
        self._drops = context.name in _DROPS_UNREFERENCED
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

    @property
    def complete(self) -> bool:
        return self._next == len(self._wanted)

    def send(self, packet: Any, entry: bool) -> Iterator[av.VideoFrame | str]:
        """Give a packet to the decoder unless nothing wanted needs it; what is settled then."""
        name = packet.pts  # which the decoder hands on as the frame's
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
        self._group += 1
        self._group_name = name
        self._entered.add(name)

    def _note(self, name: int | None, packet: Any) -> None:
        self._place += 1
        if name is not None:
            self._sent[name] = _Sent(self._place, self._group, name < self._group_name)
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
        name = frame.pts
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
