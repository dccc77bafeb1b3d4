"""The frames that each step of a block uses, and the step that uses each frame first."""

from __future__ import annotations

import numpy as np


class FrameUses:
    """The windows of a rank in a block, and the distinct (frame, step) pairs, sorted by frame and then by step.

    Attributes:
        windows: int64 [K, b], the windows of each of the K steps.
        frames: int64 [K, b, T], their frames.
        frame, step: int64 [pairs]; steps count from 0 in the block.
        first: index of each frame's first pair, int64 [distinct frames].
    """

    def __init__(self, windows: np.ndarray, frames: np.ndarray) -> None:
        self.windows, self.frames = windows, frames
        count = len(frames)
        # Frame and step in one integer: one sort brings each frame's first step in front.
        keys = np.sort((frames * count + np.arange(count)[:, None, None]).ravel())
        keys = keys[np.diff(keys, prepend=-1) > 0]
        self.frame, self.step = np.divmod(keys, count)
        self.first = np.flatnonzero(np.diff(self.frame, prepend=-1))
