"""The frames of windows in one epoch, where each epoch may draw the steps of the windows anew."""

from __future__ import annotations

from typing import Any

import numpy as np

from cltt.sampling.order_state import require_int
from cltt.sampling.permutation import MAX_SEED, STEPS, hashed_below, seed_sequence
from cltt.sampling.windows import Ints, WindowIndex


class EpochWindows:
    """The windows of ``index`` with the steps of one epoch.

    Where ``index.frame_step`` is a range A-B, the step of a window is a hash of (seed, epoch, window), uniform from A
    to B: the same on every rank and after every resume.

    Args:
        index: the windows.
        seed, epoch: integers from 0 to 2**64-1.

    Attributes:
        index, seed, epoch: as given.
    """

    def __init__(self, index: WindowIndex, *, seed: int = 0, epoch: int = 0) -> None:
        self.index = index
        self.seed = require_int("seed", seed, 0, MAX_SEED)
        self.epoch = require_int("epoch", epoch, 0, MAX_SEED)

    def frames(self, window_ids: Ints) -> np.ndarray:
        """Dataset-wide ids of the frames of windows: int64 [..., T], ``...`` being the shape of ``window_ids``.

        Raises:
            IndexError: a window id outside 0..N-1.
        """
        return self.index.frames(window_ids, self._steps(window_ids))

    def places(self, window_ids: Ints) -> np.ndarray:
        """As :meth:`frames`, but positions in the order that windows are cut from: see :meth:`WindowIndex.places`."""
        return self.index.places(window_ids, self._steps(window_ids))

    def _steps(self, window_ids: Ints) -> Any:
        """The step of each window; None where all have the same."""
        shortest, longest = self.index.frame_steps
        if shortest == longest:
            return None
        seeds = seed_sequence(self.seed, self.epoch, STEPS, 0)
        return shortest + hashed_below(longest - shortest + 1, np.asarray(window_ids), seeds)
