"""The frames that each step of a block uses, and the step that uses each frame first."""

from __future__ import annotations

import numpy as np


class FrameUses:
    """The distinct (frame, step) pairs of a block, sorted by frame and then by step.

    Args:
        frames: int64 [K, n], the frames of each of the K steps; repeats allowed.

    Attributes:
        frame, step: int64 [pairs]; steps count from 0 in the block.
        first: index of each frame's first pair, int64 [distinct frames].
    """

    def __init__(self, frames: np.ndarray) -> None:
        count = len(frames)
        # Frame and step in one integer: one sort brings each frame's first step in front.
        keys = np.sort((frames * count + np.arange(count)[:, None]).ravel())
        keys = keys[np.diff(keys, prepend=-1) > 0]
        self.frame, self.step = np.divmod(keys, count)
        self.first = np.flatnonzero(np.diff(self.frame, prepend=-1))
