"""Memory for batches that comes back by itself when the last tensor, view or array over it is gone."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np

# Blocks that wait for the next batch, at most; what a consumer gives back beyond them goes to the system.
MOST_FREE = 3


class LeasedMemory:
    """Blocks of bytes that are used again and again; any thread may call it.

    Fresh memory costs several times the copy into it (the kernel clears each page), and a training loop drops a batch
    every step. A block is handed out as a *lease*: an array over the block that does not own it, which every view,
    torch tensor and ``.numpy()`` of it keeps alive; when it dies the block is free again.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=MOST_FREE)

    def acquire(self, size: int) -> np.ndarray:
        """A block, uint8 [size], contents undefined, for :meth:`lease` in the end."""
        try:
            while (block := self._free.pop()).nbytes != size:  # of another size: nobody will ask for it again
                pass
            return block
        except IndexError:
            return np.empty(size, np.uint8)

    def lease(self, block: np.ndarray) -> np.ndarray:
        """``block`` as bytes for the consumer, uint8 [size]; free again when the consumer holds nothing of it."""
        block = block.reshape(-1)
        # Made from a memoryview, or numpy would let views of the lease hold the block behind it and not the lease.
        lease: np.ndarray = np.frombuffer(block.data, np.uint8)
        weakref.finalize(lease, self._free.append, block).atexit = False
        return lease
