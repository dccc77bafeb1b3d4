"""The timeline of a video: from its packets if each is surely one frame, else by decoding.

Listing frames from packets decodes nothing: each packet is a frame, shown at the packet's time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.source.video import kinds, units
from cltt.source.video.decoded import decoded_timeline
from cltt.source.video.file import is_damaged, is_hidden, opened, packets_of, path_of, rate_of, reason_of, seconds_of
from cltt.source.video.streams import stream_seconds
from cltt.source.video.timeline import BEFORE_KEY, CUT_OFF, PACKETS, Array, Note, Timeline

if TYPE_CHECKING:
    import av.container
    import av.video.stream

_DURATION = re.compile(r"(\d+):(\d+):(\d+\.?\d*)", re.ASCII)
SHORT_SECONDS = 1.0  # a video may end this much before the length in its header, which is often a little too long
NO_TIME = -(1 << 63)
SHORT = "ends before the length in its header"
# Containers and codecs in which each packet is one frame with its time stamp, unless the packets show otherwise.
_CONTAINERS = ("mov", "matroska")
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1")


class NotSure(Exception):
    """It is not certain that each packet is one frame with a valid time stamp; the message says why."""


def timeline_of(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, max_pixels: int
) -> Timeline:
    """The timeline of a stream (its frames and their times) whose container has just been opened.

    It reads the whole file. Frames of more than ``max_pixels`` are not decoded. Raises InvalidVideo and OSError as
    ``file.opened`` does.
    """
    try:
        return packet_timeline(container, stream)
    except NotSure as reason:
        why = str(reason)
    with opened(path_of(container), container.streams.video.index(stream)) as (again, same_stream):
        return replace(decoded_timeline(again, same_stream, max_pixels), why=why)


def packet_timeline(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> Timeline:
    """As :func:`timeline_of`, but from packets alone; raises NotSure if they may mislead."""
    if not container.format.name.startswith(_CONTAINERS):
        suffix = os.path.splitext(path_of(container))[1]
        raise NotSure(f"a packet of {os.fsdecode(suffix) or container.format.name} need not be a frame")
    codec = stream.codec_context.codec.canonical_name
    if codec not in _CODECS:
        raise NotSure(f"a packet of {codec} need not be a frame")
    if codec in ("h264", "hevc") and not units.length_size(stream):
        raise NotSure("its packets have start codes, so they may hold several frames")
    if codec in ("h264", "hevc") and not units.is_progressive(stream):
        raise NotSure("packets may be single fields, half a frame each")
    packets = _Packets(container, stream)
    if not len(packets.pts):
        raise NotSure("no packet can be read")
    line = _timed(packets, stream)
    line.notes.extend(_end_notes(packets, line, stream))
    with open(path_of(container), "rb") as file:
        if kinds.joined_at(file) is not None:
            line.notes.append(Note(None, "skipped", kinds.JOINED))
    return line


class _Packets:
    """The packets of a stream, in file order.

    Attributes:
        pts, hidden: int64 and bool [packets], time stamps and whether a packet is not shown.
        entries: int64 [entries], positions of the packets where decoding may begin.
        break_reason: why the file ends early, or empty.
    """

    def __init__(self, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> None:
        import av

        pts, delays, entry, hidden, key = [], set(), [], [], []
        is_entry = units.entry_test(stream)
        codec = stream.codec_context.codec.canonical_name
        is_one_frame = units.one_frame_test(stream) if codec in ("h264", "hevc") else lambda packet: True
        self.break_reason = ""
        try:
            for packet in packets_of(container, stream):
                if not is_one_frame(packet):
                    raise NotSure("a packet is not one frame")
                if packet.pts is None:
                    raise NotSure("packets without times")
                pts.append(packet.pts)
                delays.add(None if packet.dts is None else packet.pts - packet.dts)
                entry.append(is_entry(packet))
                key.append(packet.is_keyframe)
                hidden.append(is_hidden(codec, packet))
        except av.FFmpegError as error:
            if not is_damaged(path_of(container), len(pts), error):
                raise
            self.break_reason = reason_of(error)
        # B-frames are shown in another order than decoded, so pts - dts must vary.
        if len(delays) == 1 and len(pts) > 1 and stream.codec_context.has_b_frames:
            raise NotSure("times in the order of decoding")
        if len(set(pts)) < len(pts):
            raise NotSure("times repeat")
        self.pts = np.array(pts, np.int64)
        self.hidden = np.array(hidden, bool)
        self.entries = np.flatnonzero(entry)
        if not len(self.entries):  # decode from the first key frame or packet; packing leaves out bad frames
            self.entries = np.flatnonzero(key)[:1] if any(key) else np.arange(min(1, len(pts)))


def _end_notes(packets: _Packets, line: Timeline, stream: av.video.stream.VideoStream) -> Iterator[Note]:
    """A note if the file breaks off, or if the video ends before the length in its header."""
    last = float(line.times[-1]) if len(line.times) else None
    if packets.break_reason:
        yield Note(last, "cut", f"{CUT_OFF}: {packets.break_reason}")
    elif last is not None and (length := _header_seconds(stream)):
        missing = length - last - 1 / float(rate_of(stream))
        # Fewer packets than the header counts prove nothing alone: an edit list may hide some, and no time is missing.
        fewer = len(packets.pts) < stream.frames and missing > 1 / float(rate_of(stream))
        if fewer or missing > SHORT_SECONDS:
            yield Note(last, "cut", CUT_OFF if fewer else SHORT)


def _header_seconds(stream: av.video.stream.VideoStream) -> float:
    """The length of the stream in the header; 0 if it has none.

    Matroska has a tag per stream. Without it, the length of the whole file is taken if the stream is the only one.
    """
    if seconds := stream_seconds(stream):
        return seconds
    if tag := _DURATION.fullmatch(stream.metadata.get("DURATION", "")):
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
    container: Any = stream.container
    alone = "matroska" in container.format.name and len(container.streams) == 1
    return (container.duration or 0) / 1e6 if alone else 0.0


def _timed(packets: _Packets, stream: av.video.stream.VideoStream) -> Timeline:
    """The timeline from the times of the packets.

    A group (the packets from one entry to the next, a GOP) is decoded together. A leading frame comes after its entry
    in the file but is shown before it. It also refers to the group before: decoding for it begins at that group's
    entry. If there is no group before, the frame is left out. Raises NotSure if a group is not later than all groups
    before it.
    """
    places: list[Array] = [np.zeros(0, np.int64)]
    entries: list[Array] = [np.zeros(0, np.int64)]
    lost_head = bool(len(packets.entries)) and packets.entries[0] > 0
    latest, previous = NO_TIME, -1  # the largest time stamp so far; the entry of the group before (-1: none)
    for entry, stop in zip(packets.entries, np.append(packets.entries[1:], len(packets.pts)), strict=True):
        group = np.arange(entry, stop)[~packets.hidden[entry:stop]]
        if not len(group):  # all hidden by an edit list, but decoding may begin there
            previous = int(entry)
            continue
        stamps, at = packets.pts[group], packets.pts[entry]
        leads = stamps < at
        if previous < 0:
            lost_head |= bool(leads.any())
            group, stamps, leads = group[~leads], stamps[~leads], leads[~leads]
        if stamps.min(initial=at) <= latest:  # the entry itself may be hidden
            raise NotSure("times step back")
        places.append(group)
        entries.append(np.where(leads, previous, entry))
        latest, previous = max(latest, int(stamps.max(initial=at))), int(entry)
    found = np.concatenate(places)
    order = np.argsort(packets.pts[found])
    pts = packets.pts[found][order]
    notes = [Note(None, "skipped", BEFORE_KEY)] if lost_head else []
    starts = np.zeros(len(pts), bool)
    return Timeline(PACKETS, pts, packets.pts[np.concatenate(entries)[order]], seconds_of(pts, stream), starts, notes)
