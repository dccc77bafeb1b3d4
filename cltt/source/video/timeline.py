"""The frames of a video with their times, and which of them a clip takes.

:func:`sample` picks frames at equal time steps, so that a frame step is the same time in all videos.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-6  # seconds, as a time base rounds
ROUNDING = 1e-3  # seconds, as some containers have times in milliseconds
PACKETS, DECODED = "pts", "decoded"  # Timeline.timing

BEFORE_KEY = "pictures before the first key frame"
BACKWARDS = "times run backwards"
GAP = "no frame for longer than max_gap"
CUT_OFF = "the file breaks off"


class Note(NamedTuple):
    """A part of a video that is left out, or where its clip is cut; ``time``: in seconds, None: the whole video."""

    time: float | None
    what: str  # "skipped" or "cut"
    reason: str


@dataclass(frozen=True)
class Timeline:
    """The frames that a video shows, in the order in which the decoder returns them.

    Attributes:
        timing: what the ids are. PACKETS: the time stamp of the frame's packet, which is unique. DECODED: the count of
            the frame among those that come out of the decoder (``decoded.BAD``: it cannot be decoded).
        ids: int64 [frames].
        entries: int64 [frames], the id of the packet where decoding must begin to reach the frame.
        times: float64 [frames], seconds from the first frame.
        starts: bool [frames], whether a part begins here that does not continue in time.
        notes: what was left out.
        why: why the frames were listed by decoding; empty for PACKETS.
        fields: whether the frames are single fields.
    """

    timing: str
    ids: Array
    entries: Array
    times: Array
    starts: Array
    notes: list[Note] = field(default_factory=list)
    why: str = ""
    fields: bool = False


# ---- sampling


class Samples(NamedTuple):
    """The frames of a timeline that a clip takes."""

    frames: Array  # int64 [samples]: positions in the timeline
    begins: Array  # bool [samples]: whether a part of the clip begins here
    notes: list[Note]
    slower: bool = False  # whether it has fewer frames per second than asked for, so all are taken


def usual_distance(line: Timeline) -> float:
    """The median of the seconds between neighbouring frames; 0 for a single frame."""
    distances = np.diff(line.times)[~line.starts[1:]]
    return float(np.median(distances)) if len(distances) else 0.0


def default_max_gap(line: Timeline, fps: float | None) -> float:
    """The larger of 0.5 s and twice the usual distance of two frames, so that one lost frame cuts no clip."""
    return max(0.5, 2 * usual_distance(line) if fps is None else 2 / fps)


def sample(line: Timeline, fps: float | None, max_gap: float | None) -> Samples:
    """The frames of ``line`` at ``fps`` frames per second.

    Sample k of a part is the last frame shown at or before t0 + k/fps, where t0 is the time of the part's first frame,
    for all k/fps up to the part's last frame. Without ``fps``, or if the video has fewer frames per second, every frame
    is taken. A part ends where the next frame comes more than ``max_gap`` seconds later (None:
    :func:`default_max_gap`), or earlier in time.
    """
    slower = fps is not None and usual_distance(line) > 1 / fps + ROUNDING
    fps = None if slower else fps
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
        return Samples(np.zeros(0, np.int64), np.zeros(0, bool), notes, slower)
    return Samples(np.concatenate(frames), np.concatenate(begins), notes, slower)


def _by_clock(times: Array, fps: float | None) -> Array:
    """Positions in ``times`` (rising from 0) of the frames shown at 0, 1/fps, 2/fps ...; all without ``fps``."""
    if fps is None:
        return np.arange(len(times))
    ticks = np.arange(int((times[-1] + TOLERANCE) * fps) + 2) / fps
    ticks = ticks[ticks <= times[-1] + TOLERANCE]
    return np.searchsorted(times, ticks + TOLERANCE, side="right") - 1
