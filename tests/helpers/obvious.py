"""The obvious twin of windows and order: every window listed one by one, every pair of a batch looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def list_windows(
    lengths: Sequence[int], size: int, step: int, stride: int, limit: int = 0, clips: Iterable[int] | None = None
) -> list[tuple[int, int]]:
    """(clip, start) of every window, in the order of their numbers."""
    listed = []
    for clip in range(len(lengths)) if clips is None else clips:
        starts = list(range(0, lengths[clip] - (size - 1) * step, stride))
        if limit == 1:
            starts = starts[(len(starts) - 1) // 2 :][:1]
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
    close = (clip[:, None] == clip) & (abs(start[:, None] - start) < gap)
    return int(np.triu(close, 1).sum())
