"""The obvious twin of windows and order: every window listed one by one, every pair of a batch looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def list_windows(
    lengths: Sequence[int],
    size: int,
    step: int,
    stride: int,
    limit: int = 0,
    clips: Iterable[int] | None = None,
    short: int = 0,
) -> list[tuple[int, int]]:
    """(clip, start) of every window, in the order of their numbers."""
    listed = []
    for clip in range(len(lengths)) if clips is None else clips:
        starts = list(range(0, lengths[clip] - (size - 1) * step, stride))
        if len(starts) > 1 and (limit == 1 or len(starts) <= short):
            starts = [starts[len(starts) // 2]]
        elif 0 < limit < len(starts):
            starts = [starts[k * (len(starts) - 1) // (limit - 1)] for k in range(limit)]
        listed += [(clip, start) for start in starts]
    return listed


def list_frames(lengths: Sequence[int], window: tuple[int, int], size: int, step: int) -> list[int]:
    """Dataset-wide ids of a window's frames."""
    clip, start = window
    return [sum(lengths[:clip]) + start + k * step for k in range(size)]


def count_overlaps(clip: np.ndarray, start: np.ndarray, gap: int) -> int:
    """Unordered pairs of rows in one clip with starts less than ``gap`` apart."""
    total = 0
    for one in np.unique(clip):
        starts = np.sort(start[clip == one]).tolist()
        first = 0
        for place, here in enumerate(starts):
            while here - starts[first] >= gap:
                first += 1
            total += place - first
    return total


def count_conflicts(clip: np.ndarray, start: np.ndarray, gap: int) -> int:
    """The largest number of windows of one clip that start within ``gap`` frames."""
    most = 0
    for one in np.unique(clip):
        starts = np.sort(start[clip == one])
        most = max(most, max(int(((starts >= here) & (starts < here + gap)).sum()) for here in starts))
    return most
