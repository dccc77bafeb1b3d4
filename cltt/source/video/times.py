"""The frames of one video and their times, told from its packets alone: nothing is decoded.

A packet is a frame, shown at the packet's time. Frames are put into the order of their times; where the times run back,
a new stretch begins. :func:`sample` then picks frames by the clock, so that windows of a step count seconds everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cltt.source.video.file import entry_test, is_hidden, is_of_the_file, packets_of, path_of, rate_of, reason_of

if TYPE_CHECKING:
    import av.container
    import av.video.stream

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-6  # seconds: a time base rounds
SHORT_SECONDS = 1.0  # a video may end so much before the length in its header: sound often lasts longer
NO_TIME = -(1 << 63)

BEFORE_KEY = "pictures before the first key frame"
BACKWARDS = "times run backwards"
GAP = "no frame for longer than max_gap"
CUT_OFF = "the file breaks off"
SHORT = "ends before the length in its header"


class Note(NamedTuple):
    """Something of a video that is left out, or where its clip is cut: at ``time`` (seconds; None: all of it)."""

    time: float | None
    what: str  # "skipped" or "cut"
    reason: str


@dataclass(frozen=True)
class Timeline:
    """The frames that a video shows, in the order of their times.

    Attributes:
        timing: what names a frame. "pts": the time stamp of its packet, as it is the only one with it; "order": its
            packet's place in the file; "count": its place among the frames that come out of the decoder, where packets
            do not say in which order they are shown.
        ids: int64 [frames], these names; entries: the name of the packet where decoding must begin to reach the frame.
        times: float64 [frames], seconds from the first frame.
        starts: bool [frames]: a stretch begins here that does not follow in time.
        notes: what was left out.
    """

    timing: str
    ids: Array
    entries: Array
    times: Array
    starts: Array
    notes: list[Note] = field(default_factory=list)


class _Packets:
    """What all packets of a stream say, in file order."""

    def __init__(self, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> None:
        import av

        pts, delays, entry, hidden, key = [], set(), [], [], []
        is_entry = entry_test(stream)
        codec = stream.codec_context.name
        self.break_reason = ""
        try:
            for packet in packets_of(container, stream):
                pts.append(NO_TIME if packet.pts is None else packet.pts)
                delays.add(None if packet.pts is None or packet.dts is None else packet.pts - packet.dts)
                entry.append(is_entry(packet))
                key.append(packet.is_keyframe)
                hidden.append(is_hidden(codec, packet))
        except av.FFmpegError as error:
            if isinstance(error, OSError) and not is_of_the_file(path_of(container), len(pts), error):
                raise
            self.break_reason = reason_of(error)
        self.pts = np.array(pts, np.int64)
        self.hidden = np.array(hidden, bool)
        # AVI has no time stamps: FFmpeg numbers the packets as they come, whatever the order in which they are shown.
        self.unordered = bool((self.pts == NO_TIME).all()) or (len(delays) == 1 and stream.codec_context.has_b_frames)
        self.entries = np.flatnonzero(entry)
        if not len(self.entries):  # no clean one: the decoder will tell from where on its pictures are good
            self.entries = np.flatnonzero(key)[:1] if any(key) else np.arange(min(1, len(pts)))


def read_timeline(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Timeline:
    """The timeline of a stream whose container has just been opened; reads the whole file."""
    packets = _Packets(container, stream)
    line = _counted(packets, stream) if packets.unordered else _timed(packets, stream)
    line.notes.extend(_end_notes(packets, line, stream))
    return line


def _end_notes(packets: _Packets, line: Timeline, stream: av.video.stream.VideoStream) -> Iterator[Note]:
    last = float(line.times[-1]) if len(line.times) else None
    if packets.break_reason:
        yield Note(last, "cut", f"{CUT_OFF}: {packets.break_reason}")
    elif last is not None and stream.duration and stream.time_base:
        missing = float(stream.duration * stream.time_base) - last - 1 / float(rate_of(stream))
        fewer = len(packets.pts) < stream.frames and missing > 1 / float(rate_of(stream))  # edit lists leave some out
        if not line.starts.any() and (fewer or missing > SHORT_SECONDS):
            yield Note(last, "cut", CUT_OFF if fewer else SHORT)


def _counted(packets: _Packets, stream: av.video.stream.VideoStream) -> Timeline:
    """Frames by their places, in the order of decoding: at the packets' times, or at an even rate without any."""
    first = int(packets.entries[0]) if len(packets.entries) else 0
    ids = np.arange(first, len(packets.pts))
    entries = packets.entries[np.searchsorted(packets.entries, ids, side="right") - 1] if len(ids) else ids
    stamps = np.sort(packets.pts[first:])
    if len(stamps) and stamps[0] != NO_TIME:
        times = _seconds(stamps, stream)
    else:
        times = (ids - first) / float(rate_of(stream))
    notes = [Note(None, "skipped", BEFORE_KEY)] if first else []
    return Timeline("count", ids, entries, times, np.zeros(len(ids), bool), notes)


def _seconds(pts: Array, stream: av.video.stream.VideoStream) -> Array:
    """Time stamps as float64 seconds from the first of them."""
    base = stream.time_base or rate_of(stream) ** -1
    return (pts - pts[:1]) * base.numerator / base.denominator


def _timed(packets: _Packets, stream: av.video.stream.VideoStream) -> Timeline:
    """Frames by the times of their packets."""
    pieces, lost_head, backwards = _stretches(packets)
    order = np.concatenate([np.zeros(0, np.int64), *(piece.places for piece in pieces)])
    starts = np.zeros(len(order), bool)
    lengths = [len(piece.places) for piece in pieces]
    starts[np.cumsum([0, *lengths])[1:-1]] = True
    entries = np.concatenate([np.zeros(0, np.int64), *(piece.entries for piece in pieces)])
    pts = packets.pts[order]
    times = _seconds(pts, stream)
    notes = [Note(None, "skipped", BEFORE_KEY)] if lost_head else []
    for place in backwards:
        before = int(np.searchsorted(np.sort(order), place)) - 1
        notes.append(Note(float(times[max(0, min(before, len(times) - 1))]), "skipped", BACKWARDS))
    stamps = packets.pts[packets.pts != NO_TIME]
    if len(pieces) == 1 and not backwards and len(np.unique(stamps)) == len(stamps):
        return Timeline("pts", pts, packets.pts[entries], times, starts, notes)
    return Timeline("order", order, entries, times, starts, notes)


class _Stretch(NamedTuple):
    """Frames whose times follow each other: places of their packets in the order of time, and where to enter."""

    places: Array
    entries: Array


def _stretches(packets: _Packets) -> tuple[list[_Stretch], bool, list[int]]:
    """(stretches, whether pictures before a first key frame are lost, places at which times run backwards).

    From one entry to the next a group is decoded together. A picture behind the entry in the file but before it in time
    leads: it needs the group before too, and is lost where there is none.
    """
    stretches: list[_Stretch] = []
    places: list[Array] = []
    entries: list[Array] = []
    backwards: list[int] = []
    lost_head = bool(len(packets.entries)) and packets.entries[0] > 0
    latest, previous = NO_TIME, -1  # the largest time stamp of the stretch so far, the entry of the group before

    def close() -> None:
        if places:
            joined = np.concatenate(places)
            order = np.argsort(packets.pts[joined], kind="stable")
            stretches.append(_Stretch(joined[order], np.concatenate(entries)[order]))
            places.clear()
            entries.clear()

    for entry, stop in zip(packets.entries, np.append(packets.entries[1:], len(packets.pts)), strict=True):
        group = np.arange(entry, stop)
        group = group[(packets.pts[group] != NO_TIME) & ~packets.hidden[group]]
        if not len(group):
            continue
        stamps = packets.pts[group]
        at = packets.pts[entry] if packets.pts[entry] != NO_TIME else stamps.min()
        if at <= latest:
            close()
            latest, previous = NO_TIME, -1
        leads = stamps < at
        late = leads & (stamps <= latest) if previous >= 0 else np.zeros(len(group), bool)
        if late.any():
            backwards.append(int(group[late][0]))
        lost_head |= bool(previous < 0 and leads.any())
        kept = ~late if previous >= 0 else ~leads
        _, unique = np.unique(stamps[kept], return_index=True)
        unique.sort()
        places.append(group[kept][unique])
        entries.append(np.where(leads[kept][unique], previous, entry))
        latest, previous = max(latest, int(stamps.max())), int(entry)
    close()
    return stretches, lost_head, backwards


# ---- sampling


class Samples(NamedTuple):
    """Frames that a clip takes of a timeline: their places in it, and whether a part of the clip begins there."""

    frames: Array  # int64 [samples]
    begins: Array  # bool [samples]; the first one does not count
    notes: list[Note]


def default_max_gap(line: Timeline, fps: float | None) -> float:
    """The larger of half a second and twice the usual distance of two frames of the clip, so one lost cuts nothing."""
    if fps is not None:
        return max(0.5, 2 / fps)
    distances = np.diff(line.times)[~line.starts[1:]]
    return max(0.5, 2 * float(np.median(distances))) if len(distances) else 0.5


def sample(line: Timeline, fps: float | None, max_gap: float | None) -> Samples:
    """Frames of ``line`` by the clock.

    Sample k of a part is the last frame shown at or before t0 + k/fps, t0 being the time of the part's first frame, for
    all k/fps up to the time of its last frame; without ``fps`` every frame. A part ends where the next frame comes more
    than ``max_gap`` seconds later (None: :func:`default_max_gap`) or earlier in time.
    """
    limit = default_max_gap(line, fps) if max_gap is None else max_gap
    far = np.zeros(len(line.times), bool)
    far[1:] = np.diff(line.times) > limit + TOLERANCE
    bounds = [0, *np.flatnonzero(far | line.starts).tolist(), len(line.times)]
    frames, begins, notes = [], [], []
    for start, stop in itertools.pairwise(bounds):
        if start == stop:
            continue
        taken = start + _by_clock(line.times[start:stop] - line.times[start], fps)
        frames.append(taken)
        begins.append(np.arange(len(taken)) == 0)
        if start:
            notes.append(Note(float(line.times[start]), "cut", BACKWARDS if line.starts[start] else GAP))
    if not frames:
        return Samples(np.zeros(0, np.int64), np.zeros(0, bool), notes)
    return Samples(np.concatenate(frames), np.concatenate(begins), notes)


def _by_clock(times: Array, fps: float | None) -> Array:
    """Places in ``times`` (from 0, rising) of the frames seen at 0, 1/fps, 2/fps ...; all of them without ``fps``."""
    if fps is None:
        return np.arange(len(times))
    ticks = np.arange(int((times[-1] + TOLERANCE) * fps) + 2) / fps
    ticks = ticks[ticks <= times[-1] + TOLERANCE]
    return np.searchsorted(times, ticks + TOLERANCE, side="right") - 1
