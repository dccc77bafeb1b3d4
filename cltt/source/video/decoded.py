"""The timeline of a stream by decoding all of it.

This is for streams whose packets may not be one frame each with a valid time stamp: pictures of single fields, several
pictures in a packet, packets without times or with wrong ones. Such a stream is decoded twice, once to list its frames
and once to pack them, and a reader always starts at the first packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.source.video import kinds
from cltt.source.video.file import is_damaged, packets_of, path_of, rate_of, reason_of, seconds_of, time_base_of
from cltt.source.video.timeline import BEFORE_KEY, CUT_OFF, DECODED, Array, Note, Timeline
from cltt.source.video.units import entry_test, picture_splitter

if TYPE_CHECKING:
    import av.container
    import av.video.stream

BAD = -1  # the id of a frame that cannot be decoded, or follows one that cannot be


class Decoder:
    """Decodes a stream whose container has just been opened, from its first packet to its last.

    Packets are numbered from 0.

    Attributes:
        entries: the packets where decoding may begin. bad: the packets with an error. positions: the byte offset of
            each packet in the file. break_reason: why the file ends early, or empty.
    """

    def __init__(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream, max_pixels: int
    ) -> None:
        self._container, self._stream = container, stream
        self._context = prepared(stream, max_pixels)
        self._context.copy_opaque = True
        self.entries: list[int] = []
        self.bad: list[int] = []
        self.positions: list[int] = []
        self.break_reason = ""

    def frames(self) -> Iterator[tuple[Any, int]]:
        """(av.VideoFrame, number of its packet) in the decoder's order."""
        import av

        is_entry, pictures = entry_test(self._stream), picture_splitter(self._stream)
        try:
            for place, packet in enumerate(packets_of(self._container, self._stream)):
                self.positions.append(-1 if packet.pos is None else packet.pos)
                if is_entry(packet):
                    self.entries.append(place)
                if packet.is_corrupt:
                    self.bad.append(place)
                for picture in pictures(packet):
                    picture.opaque = (place,)  # not the int: PyAV finds it by its address, and small ints are shared
                    yield from self._decode(picture, place)
        except av.FFmpegError as error:
            place = len(self.positions)
            if not is_damaged(path_of(self._container), place, error):
                raise
            self.break_reason = reason_of(error)
        yield from self._decode(None, len(self.positions) - 1)

    def _decode(self, packet: Any, place: int) -> Iterator[tuple[Any, int]]:
        import av

        try:
            frames = self._context.decode(packet)
        except av.FFmpegError:
            self.bad.append(place)
            return
        for frame in frames:
            of = place if frame.opaque is None else frame.opaque[0]
            if frame.is_corrupt:
                self.bad.append(of)
            yield frame, of


def prepared(stream: av.video.stream.VideoStream, max_pixels: int) -> Any:
    """The stream's decoder, set to fail on errors and on pictures of more than ``max_pixels``."""
    context = stream.codec_context
    context.thread_count = 1  # packing uses one process per core
    options = {"max_pixels": str(min(max_pixels, (1 << 31) - 1))}
    if context.name != "h264":  # h264 marks concealed pictures; with this, it does not start at a recovery point
        options["err_detect"] = "explode"
    context.options = options
    return context


# ---- the timeline


def decoded_timeline(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, max_pixels: int
) -> Timeline:
    """The timeline of a stream whose container has just been opened, by decoding all of it."""
    decoder = Decoder(container, stream, max_pixels)
    rows: list[tuple[float, float, int]] = []
    fields = False
    for frame, place in decoder.frames():
        rows.append((_tick(frame.pts), _tick(frame.dts), place))
        fields |= stream.codec_context.name == "hevc" and frame.interlaced_frame
    table = np.array(rows, np.float64).reshape(-1, 3)
    pts, dts, places = table[:, 0], table[:, 1], table[:, 2].astype(np.int64)  # stamps in ticks, NaN: none
    starts, notes = _second_recording(container, decoder, places)
    distance = float(1 / (rate_of(stream) * time_base_of(stream)))
    ticks = _ticks(pts, dts, container, distance)
    starts[1:] |= np.diff(ticks) <= 0
    bad, lost = _faults(decoder, places, starts)
    kept = ~lost
    ids, parts = np.where(bad, BAD, np.arange(len(bad)))[kept], np.cumsum(starts)[kept]
    starts = np.diff(parts, prepend=parts[:1]) > 0
    ticks = _rising(ticks[kept], starts, distance)
    times = seconds_of(ticks, stream)
    notes += [Note(None, "skipped", BEFORE_KEY)] if lost.any() or decoder.entries[:1] > [0] else []
    if decoder.break_reason:
        notes.append(Note(float(times[-1]) if len(times) else None, "cut", f"{CUT_OFF}: {decoder.break_reason}"))
    return Timeline(DECODED, ids, np.zeros(len(ids), np.int64), times, starts, notes, fields=fields)


def _tick(stamp: int | None) -> float:
    return np.nan if stamp is None else float(stamp)


def _faults(decoder: Decoder, places: Array, starts: Array) -> tuple[Array, Array]:
    """Two bool [frames]: spoilt by an error; refers to pictures before the start of a part.

    A group is an entry with the packets up to the next entry. An error spoils the rest of its group, and the leading
    pictures of the next group: these come after its entry but are shown before it, and also refer to the group before.
    If the stream has no entry, only the decoder's own errors count.
    """
    count = len(places)
    entries = np.array(decoder.entries or [0], np.int64)
    group = np.searchsorted(entries, places, side="right") - 1
    bad_from = np.full(len(entries) + 1, np.iinfo(np.int64).max)  # last: what comes before the first entry (group -1)
    for place in decoder.bad:
        at = int(np.searchsorted(entries, place, side="right")) - 1
        bad_from[at] = min(bad_from[at], place)
    key_at = np.full(len(entries) + 1, -1)  # the position in ``places`` of each group's entry
    keys = np.flatnonzero(np.isin(places, entries))[::-1]  # reversed, so the first picture of a packet counts
    key_at[group[keys]] = keys
    leads = (group >= 0) & (np.arange(count) < key_at[group])
    lost = (group < 0) | (leads & ((group == 0) | np.isin(group, group[starts & leads])))
    before_is_bad = bad_from[group - 1] < np.iinfo(np.int64).max
    return (places >= bad_from[group]) | (leads & before_is_bad), lost


def _ticks(pts: Array, dts: Array, container: av.container.InputContainer, distance: float) -> Array:
    """Times in ticks, float64 [frames], from the kind of stamps that steps back least.

    A frame has a presentation stamp (of its own packet) and a decoding stamp (of the packet after which it came out).
    If a file stamps its packets in decoding order, the decoding stamps are right. Without stamps, frames are
    ``distance`` ticks apart.
    """
    even = np.arange(len(pts)) * distance
    if container.format.name in kinds.RAW_FORMATS:
        return even
    known = [stamps for stamps in (pts, dts) if not np.isnan(stamps).all()]
    return min((_filled(stamps, distance) for stamps in known), key=lambda one: one[1], default=(even, 0))[0]


def _filled(stamps: Array, distance: float) -> tuple[Array, int]:
    """(stamps with missing ones interpolated, how many are missing or step back)."""
    places, known = np.arange(len(stamps)), np.flatnonzero(~np.isnan(stamps))
    filled = np.interp(places, known, stamps[known])
    steps = np.diff(filled[known[0] : known[-1] + 1])
    distance = float(np.median(steps[steps > 0])) if (steps > 0).any() else distance
    filled -= distance * np.maximum(0, known[0] - places)  # before the first known stamp, and after the last
    filled += distance * np.maximum(0, places - known[-1])
    return filled, int(len(stamps) - len(known) + (np.diff(filled) <= 0).sum())


def _rising(ticks: Array, starts: Array, distance: float) -> Array:
    """``ticks``, each part that steps back moved after the one before; no two are equal."""
    steps = np.diff(ticks, prepend=ticks[:1] - 1)
    return ticks + np.cumsum(np.where(starts & (steps <= 0), distance - steps, 0))


def _second_recording(
    container: av.container.InputContainer, decoder: Decoder, places: Array
) -> tuple[Array, list[Note]]:
    """(bool [frames]: a second recording begins here; a note if FFmpeg does not read it)."""
    with open(path_of(container), "rb") as file:
        at = kinds.joined_at(file)
    begins = np.zeros(len(places), bool)
    if at is None:
        return begins, []
    behind = np.array(decoder.positions, np.int64)[places] > at
    if not behind.any():
        return begins, [Note(None, "skipped", kinds.JOINED)]
    begins[behind.argmax()] = True
    return begins, []
