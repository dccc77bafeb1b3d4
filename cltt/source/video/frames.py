"""Reading wanted frames of a video file, in order, with as little decoding as is safe.

With ``timeline.PACKETS``, the id of a frame is the time stamp of its packet. Groups of packets (from one entry to the
next) that hold no wanted frame are not decoded, and in the others the decoder drops pictures to which no other refers.
A decoder continues after an error with spoilt pictures, so no frame between an error and the next entry is returned.
With ``timeline.DECODED``, the id of a frame is its count, and all frames before it are decoded.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cltt.source.video.decoded import BAD, Decoder, prepared
from cltt.source.video.file import is_damaged, opened, packets_of
from cltt.source.video.streams import crop_of
from cltt.source.video.timeline import PACKETS
from cltt.source.video.units import entry_test

if TYPE_CHECKING:
    import av
    import av.container
    import av.video.stream

NO_PICTURE = "no picture comes out of the decoder"
FOLLOWS = "cannot be decoded, or follows a picture that cannot be"
FAR_SECONDS = 10.0  # an entry this far ahead is reached by seeking, a nearer one by reading on
# A picture may come out of the decoder this many packets after its own: the largest reorder depth of H.264.
HOLD_PACKETS = 16
# FFmpeg's decoders that mark all pictures to which others refer. (In HEVC higher temporal layers may refer to unmarked
# ones; VP9 and AV1 have no such mark.)
_DROPS_UNREFERENCED = ("h264",)


class Wanted(NamedTuple):
    """A frame: its id and entry (packet where decoding must begin), as in ``Timeline``."""

    id: int
    entry: int


class _Sent(NamedTuple):
    """A packet sent to the decoder: its number, its group, if it is shown before its entry."""

    place: int
    group: int
    leads: bool


class VideoReader(contextlib.ExitStack):
    """Reads frames of a video file, which is open until :meth:`close`, by their ids; for one thread at a time.

    Args:
        timing: PACKETS or DECODED of ``timeline``: what the ids are.
        number: of the video stream; None: ``streams.main_stream``.
        max_pixels: the decoder refuses larger pictures.

    Raises InvalidVideo or OSError as ``file.opened`` does.
    """

    def __init__(self, path: bytes, timing: str, *, number: int | None = None, max_pixels: int = (1 << 31) - 1) -> None:
        super().__init__()
        self._path = path
        self._number = number
        self._max_pixels = max_pixels
        self._by_packets = timing == PACKETS
        self._open()
        with open(path, "rb") as file:
            self.crop = crop_of(file, self._container, self.stream)

    def _open(self) -> None:
        self.close()
        self._container, self.stream = self.enter_context(opened(self._path, self._number))
        if self._by_packets:
            self._context = prepared(self.stream, self._max_pixels)
            self._is_entry = entry_test(self.stream)
        else:
            self._counted = enumerate(Decoder(self._container, self.stream, self._max_pixels).frames())
        self._next = 0  # number of the next packet or frame; after a seek only known not to be 0

    def frames(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        """The frame, or why there is none, for each of ``wanted``; these are in timeline order."""
        if not self._by_packets:
            yield from self._counted_frames(wanted)
            return
        start = 0
        for stop in range(1, len(wanted) + 1):
            if stop == len(wanted) or self._is_far(wanted[stop - 1], wanted[stop]):
                yield from self._near_frames(wanted[start:stop])
                start = stop

    def _counted_frames(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        if any(BAD != one.id < self._next for one in wanted):
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

    def _near_frames(self, wanted: Sequence[Wanted]) -> Iterator[av.VideoFrame | str]:
        decoding: _Decoding | None = None
        with contextlib.closing(self._packets_from(wanted[0].entry)) as packets:
            for packet in packets:
                if decoding is None:  # not earlier: finding the first packet may have opened the file again
                    self._context.flush_buffers()
                    decoding = _Decoding(self._context, wanted)
                entry = self._is_entry(packet) or packet.pts == wanted[0].entry
                yield from decoding.send(packet, entry)
                if decoding.complete:
                    return
        yield from [NO_PICTURE] * len(wanted) if decoding is None else decoding.finish()

    # ---- finding the packets

    def _packets_from(self, entry: int) -> Generator[Any, None, None]:
        """The packets from the one with the stamp ``entry`` to the end or to the file's damage."""
        if (found := self._seek(entry)) is not None:
            yield from found
            return
        if self._next != 0:
            self._open()
        reached = False
        for packet in self._packets():
            reached = reached or packet.pts == entry
            if reached:
                yield packet

    def _seek(self, entry: int) -> Iterator[Any] | None:
        """As :meth:`_packets_from`, by seeking; None if seeking does not find the packet."""
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
            for count, packet in enumerate(packets_of(self._container, self.stream), 1):  # noqa: B007  # for the error
                self._next += 1
                yield packet
        except av.FFmpegError as error:  # the plan has a note of the damage
            if not is_damaged(self._path, count, error):
                raise


class _Decoding:
    """Sends the needed packets to a decoder and returns the frames that no error has spoilt."""

    def __init__(self, context: Any, wanted: Sequence[Wanted]) -> None:
        self._context = context
        self._drops = context.name in _DROPS_UNREFERENCED
        self._wanted = wanted
        self._positions: dict[int, list[int]] = {}
        for position, one in enumerate(wanted):
            self._positions.setdefault(one.id, []).append(position)
        self._found: dict[int, tuple[av.VideoFrame, _Sent]] = {}
        self._next = 0  # position in ``wanted`` of the next frame to return
        self._latest = -1  # the largest position in ``wanted`` that has been decoded
        self._sent: dict[int, _Sent] = {}
        self._entries: set[int] = set()
        self._skip_to: int | None = wanted[0].entry  # packets before this entry are not sent; None: all are
        self._place = 0
        self._group = -1
        self._group_name = 0
        self._bad_from: dict[int, int] = {}  # group -> number of its first packet with an error

    @property
    def complete(self) -> bool:
        return self._next == len(self._wanted)

    def send(self, packet: Any, entry: bool) -> Iterator[av.VideoFrame | str]:
        """Send a packet to the decoder if a wanted frame needs it; yields the frames that are ready."""
        name = packet.pts  # the decoded frame has it, too
        if self._skip_to is not None and name != self._skip_to:
            return
        self._skip_to = None
        self._record(name, packet, entry)
        self._decode(packet)
        after = self._latest + 1  # all before it have been decoded, or cannot be
        if after < len(self._wanted) and self._wanted[after].entry in self._entries:
            yield from self._ready(hold=HOLD_PACKETS)
            return
        yield from self.finish(after)
        if after < len(self._wanted):
            self._skip_to = self._wanted[after].entry

    def _record(self, name: int | None, packet: Any, entry: bool) -> None:
        self._place += 1
        if entry and name is not None:
            self._group += 1
            self._group_name = name
            self._entries.add(name)
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

    def _ready(self, hold: int) -> Iterator[av.VideoFrame | str]:
        """The next wanted frames in order, or for each why there is none.

        Frames come out of the decoder in time order, so one that is missing before the latest does not come any more.
        An error shows only when its picture comes out, perhaps after pictures that refer to it. So each frame is held
        back until ``hold`` packets after its own have been sent.
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
        """Empty the decoder; yields the remaining frames before ``stop`` (None: all)."""
        import av

        with contextlib.suppress(av.FFmpegError):
            for frame in self._context.decode(None):
                self._receive(frame)
        self._context.flush_buffers()
        self._sent.clear()
        self._latest = (len(self._wanted) if stop is None else stop) - 1
        yield from self._ready(hold=0)
