"""The frames of one video and their times, and which of them a clip takes.

:func:`sample` picks frames by the clock, so that windows of a step count seconds everywhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-6  # seconds: a time base rounds
ROUNDING = 1e-3  # seconds: some containers have times in milliseconds
PACKETS, DECODED = "pts", "decoded"  # Timeline.timing

BEFORE_KEY = "pictures before the first key frame"
BACKWARDS = "times run backwards"
GAP = "no frame for longer than max_gap"
CUT_OFF = "the file breaks off"


class Note(NamedTuple):
    """Something of a video that is left out, or where its clip is cut: at ``time`` (seconds; None: all of it)."""

    time: float | None
    what: str  # "skipped" or "cut"
    reason: str


@dataclass(frozen=True)
class Timeline:
    """The frames that a video shows, in the order in which the decoder gives them.

    Attributes:
        timing: what names a frame. PACKETS: the time stamp of its packet, as it is the only one with it; DECODED: its
            place among the frames that come out of the decoder (``decoded.BAD``: it cannot be decoded).
        ids: int64 [frames], these names; entries: the name of the packet where decoding must begin to reach the frame.
        times: float64 [frames], seconds from the first frame.
        starts: bool [frames]: a part begins here that does not follow in time.
        notes: what was left out.
        why: why the frames were decoded to list them; empty for PACKETS.
        fields: frames are single fields.
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
    """Frames that a clip takes of a timeline: their places in it, and whether a part of the clip begins there."""

    frames: Array  # int64 [samples]
    begins: Array  # bool [samples]; the first one does not count
    notes: list[Note]
    slower: bool = False  # than the frames a second asked for: its own frames are taken


def usual_distance(line: Timeline) -> float:
    """Seconds between most frames and the next; 0 of a single frame."""
    distances = np.diff(line.times)[~line.starts[1:]]
    return float(np.median(distances)) if len(distances) else 0.0


def default_max_gap(line: Timeline, fps: float | None) -> float:
    """The larger of half a second and twice the usual distance of two frames of the clip, so one lost cuts nothing."""
    return max(0.5, 2 * usual_distance(line) if fps is None else 2 / fps)


def sample(line: Timeline, fps: float | None, max_gap: float | None) -> Samples:
    """Frames of ``line`` by the clock.

    Sample k of a part is the last frame shown at or before t0 + k/fps, t0 being the time of the part's first frame, for
    all k/fps up to the time of its last frame; without ``fps``, or where frames come more slowly, every frame. A part
    ends where the next frame comes more than ``max_gap`` seconds later (None: :func:`default_max_gap`) or earlier in
    time.
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
    """Places in ``times`` (from 0, rising) of the frames seen at 0, 1/fps, 2/fps ...; all of them without ``fps``."""
    if fps is None:
        return np.arange(len(times))
    ticks = np.arange(int((times[-1] + TOLERANCE) * fps) + 2) / fps
    ticks = ticks[ticks <= times[-1] + TOLERANCE]
    return np.searchsorted(times, ticks + TOLERANCE, side="right") - 1
