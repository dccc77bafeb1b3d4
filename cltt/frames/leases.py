"""Memory for batches that comes back by itself when the last tensor, view or array over it is gone."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

# Blocks that wait for the next batch, at most; what a consumer gives back beyond them goes to the system.
MOST_FREE = 3
# Blocks with the consumer that come back, at most; what it holds beyond them goes to the system in the end.
MOST_LEASED = 8


class LeasedMemory:
    """Blocks of bytes that are used again and again; any thread may call it.

    Fresh memory costs several times the copy into it (the kernel clears each page), and a training loop drops a batch
    every step. A block is handed out as a *lease*: an array over the block that does not own it, which every view,
    torch tensor and ``.numpy()`` of it keeps alive; when it dies the block is free again.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=MOST_FREE)
        self._leased: set[_Lease] = set()
        self._ended: deque[_Lease] = deque()

    def acquire(self, size: int) -> np.ndarray:
        """A block, uint8 [size], contents undefined, for :meth:`lease` in the end."""
        self._take_back()
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
        if len(self._leased) < MOST_LEASED:
            self._leased.add(_Lease(lease, block, self._ended.append))
        return lease

    def _take_back(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                ended = self._ended.popleft()
                self._leased.discard(ended)
                self._free.append(ended.block)


class _Lease(weakref.ref[np.ndarray]):
    """Calls ``ended(self)`` when its array dies.

    ``ended`` is to be a function in C: what a signal's handler raises within a weak reference's callback is lost.
    """

    __slots__ = ("block",)
    __hash__ = object.__hash__  # a reference's own is that of what it refers to
    __eq__ = object.__eq__

    block: np.ndarray

    def __new__(cls, array: np.ndarray, block: np.ndarray, ended: Callable[[_Lease], None]) -> _Lease:
        lease = super().__new__(cls, array, ended)
        lease.block = block
        return lease

    def __init__(self, *_: object) -> None:
        pass
