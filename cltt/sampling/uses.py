"""Which step of a block uses which frame, and which uses it first."""

from __future__ import annotations

import numpy as np


class FrameUses:
    """Each frame once for each step of a block that needs it, by frame and then by step.

    Args:
        frames: int64 [K, n], the frames of the K steps; repeats allowed.

    Attributes:
        frame, step: int64 [uses]; steps are counted within the block.
        first: where each frame's first use stands, int64 [distinct frames].
    """

    def __init__(self, frames: np.ndarray) -> None:
        count = len(frames)
        # Frame and step in one integer: one sort brings each frame's first step in front.
        keys = np.sort((frames * count + np.arange(count)[:, None]).ravel())
        keys = keys[np.diff(keys, prepend=-1) > 0]
        self.frame, self.step = np.divmod(keys, count)
        self.first = np.flatnonzero(np.diff(self.frame, prepend=-1))
