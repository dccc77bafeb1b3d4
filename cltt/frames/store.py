"""Where decoded frames lie.

Legend: h, w height and width of a stored frame; P most pixels of a stored frame.
"""

from __future__ import annotations

import queue
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cltt.frames.gather import on_device
from cltt.frames.geometry import Framing


class FrameStore:
    """Slots for decoded frames. A frame fills the first h*w*3 bytes of its slot, row by row, RGB.

    Args:
        slots: how many.
        framing: of the frames.
        device: where they lie.

    Attributes:
        sizes: int32 [slots, 2], h and w, on the host.

    On CUDA reading is queued long before it happens. Whoever queues it says so (:meth:`mark_read`), and whoever writes
    into those slots later waits for that, and for nothing queued since (:meth:`wait_writable`).
    """

    def __init__(self, slots: int, framing: Framing, device: torch.device) -> None:
        self.framing, self.device = framing, device
        self.sizes = np.full((slots, 2), framing.short, dtype=np.int32)
        # uint8 [slots, P*3]; a numpy array on a CPU, a tensor elsewhere.
        self._frames: Any = self._new_memory((slots, framing.pixels * 3))
        self._more: tuple[np.ndarray, np.ndarray] | None = None
        self._last_reads = np.full(slots, None)  # of each slot, the CUDA event of its last read
        self.mark_read(np.arange(slots))  # torch may hand out memory that queued work still uses

    def _new_memory(self, shape: tuple[int, int]) -> np.ndarray | torch.Tensor:
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=torch.uint8, device=self.device)
        # numpy asks the kernel for huge pages, torch does not. A slot that is never used takes no memory.
        return np.empty(shape, np.uint8)

    def extend(self, sizes: np.ndarray, pixels: np.ndarray) -> None:
        """Further slots of a store on a CPU, to be read only, numbered from ``slots`` on.

        ``sizes`` int32 [n, 2] as the attribute; ``pixels`` uint8 [n, P*3]: they are not copied.
        """
        self._more = sizes, pixels

    def sizes_of(self, slots: np.ndarray) -> np.ndarray:
        """h and w of the frames in ``slots`` [n], int32 [n, 2]."""
        if self._more is None:
            return self.sizes[slots]
        own = slots < self.slots
        return np.where(
            own[:, None], self.sizes[np.where(own, slots, 0)], self._more[0][np.where(own, 0, slots - self.slots)]
        )

    def mark_read(self, slots: np.ndarray) -> None:
        """Reading ``slots`` [n] has been queued on the current CUDA stream."""
        if self.device.type == "cuda":
            self._last_reads[slots] = torch.cuda.current_stream(self.device).record_event()

    def wait_writable(self, slots: np.ndarray, stream: torch.cuda.Stream | None) -> None:
        """Work queued on ``stream`` from now on comes after every read of ``slots`` that was marked so far."""
        if stream is not None:
            for event in set(self._last_reads[slots].tolist()):
                stream.wait_event(event)

    @property
    def slots(self) -> int:
        return len(self.sizes)

    def rows(self) -> torch.Tensor:
        """All slots, uint8 [slots, P*3], a view."""
        return torch.as_tensor(self._frames)

    def row(self, slot: int) -> torch.Tensor:
        """A slot, uint8 [P*3], a view."""
        return self.rows()[slot]

    def host_row(self, slot: int) -> np.ndarray:
        """A slot of a store on a CPU, uint8 [P*3], a view."""
        if slot < self.slots or self._more is None:
            return self._frames[slot]
        return self._more[1][slot - self.slots]

    def host_frame(self, slot: int) -> np.ndarray:
        """The frame in ``slot`` of a store on a CPU, uint8 [h, w, 3], a view."""
        sizes, row = (
            (self.sizes, slot) if slot < self.slots or self._more is None else (self._more[0], slot - self.slots)
        )
        height, width = sizes[row].tolist()
        return self.host_row(slot)[: height * width * 3].reshape(height, width, 3)

    def gather_into(self, slots: np.ndarray, rows: np.ndarray) -> None:
        """Copy ``slots`` [n] of a store on a CPU into ``rows`` uint8 [n, P*3]."""
        if self._more is None:
            np.take(self._frames, slots, axis=0, out=rows, mode="clip")
            return
        for slot, row in zip(slots.tolist(), rows, strict=True):
            row[:] = self.host_row(slot)

    def write_rows(self, slots: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> None:
        """Copy ``rows`` uint8 [n, P*3], frames of ``sizes`` [n, 2], into ``slots`` [n]; done when this returns."""
        if self.device.type == "cpu":
            self._frames[slots] = rows
        else:
            with own_stream(self.device) as stream:
                self.wait_writable(slots, stream)
                self.rows().index_copy_(0, on_device(slots, self.device), on_device(rows, self.device))
        self.sizes[slots] = sizes

    def host_rows(self, slots: np.ndarray) -> Iterable[np.ndarray]:
        """``slots`` [n], uint8 [P*3] each, in main memory: views where the store is there, else a copy."""
        if self.device.type == "cpu":
            return map(self.host_row, slots.tolist())
        with own_stream(self.device):
            rows = self.rows().index_select(0, on_device(slots, self.device))
            copy = torch.empty(rows.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            copy.copy_(rows, non_blocking=True)
        return copy.numpy()

    def frame(self, slot: int) -> torch.Tensor:
        """The frame in ``slot``, uint8 [h, w, 3], a view."""
        height, width = self.sizes[slot].tolist()
        return self.row(slot)[: height * width * 3].view(height, width, 3)


_IDLE_STREAMS: dict[torch.device, queue.SimpleQueue[torch.cuda.Stream]] = defaultdict(queue.SimpleQueue)


@contextmanager
def own_stream(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """On CUDA, work inside goes to a stream that no other thread uses meanwhile, and is waited for; nothing elsewhere.

    Streams outlive threads: memory freed on a stream is used again on that stream alone, and threads are new each
    epoch. A thread's device is the first one until it is set, and touching that makes a context there.
    """
    if device.type != "cuda":
        yield None
        return
    with torch.cuda.device(device):
        try:
            stream = _IDLE_STREAMS[device].get_nowait()
        except queue.Empty:
            stream = torch.cuda.Stream(device)
        try:
            with torch.cuda.stream(stream):
                yield stream
        finally:
            # An event, as torch's sync debug mode looks for waits on a stream; blocking: the thread sleeps meanwhile.
            stream.record_event(torch.cuda.Event(blocking=True)).synchronize()
            _IDLE_STREAMS[device].put(stream)
