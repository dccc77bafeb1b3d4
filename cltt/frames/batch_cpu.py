"""Frames in a store in main memory -> a batch there, written once, in the type and memory order that is wanted.

numpy and OpenCV in threads of our own, not torch: its OpenMP threads spin where the decoders should run.

Legend: S image_size; b windows in a batch; T frames in a window; n = b*T.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import cv2
import numpy as np
import torch

from cltt.config import Augment
from cltt.frames.augment import Augmentation, augment, sample_params
from cltt.frames.filters import Scratch, quick_kernels
from cltt.frames.gather import BatchFormat, statistics
from cltt.frames.geometry import Framing
from cltt.frames.leases import LeasedMemory
from cltt.frames.store import FrameStore
from cltt.threads import Threads

# Frames that a gathering thread takes at a time: few, for the decoders may hold one of the threads up ...
FRAMES_A_TURN = 8
# ... and no more values of a channel than this, or one frame: OpenCV cuts a longer table look-up into parts for threads
# of its own.
VALUES_A_TURN = 2**18 - 1


class CpuBatchMaker:
    """Gather, augment, normalise in ``threads`` threads, of which the caller's is one.

    Frames are as ``framing`` stores them, batches in ``batch_format``.
    """

    def __init__(self, framing: Framing, batch_format: BatchFormat, augment: Augment, threads: int) -> None:
        self.framing, self.augment = framing, augment
        self._writer = FrameWriter(framing.image_size, batch_format)
        self._memory = LeasedMemory()
        self._scratch = Scratch()
        self._threads = threads
        self._helpers = Threads(threads - 1, "cltt-gather")

    def make(
        self, store: FrameStore, slots: np.ndarray, numbers: dict[str, np.ndarray] | None, *, alone: bool = False
    ) -> torch.Tensor:
        """As :meth:`cltt.frames.batch.BatchMaker.make`; the tensor's memory is leased."""
        flat = slots.reshape(-1)
        block = self._memory.acquire(len(flat) * self._writer.frame_bytes)
        rows = block.reshape(len(flat), -1)
        if numbers is None:
            threads = 1 if alone else self._threads
            # Copying takes little more than handing out, so each thread is given two large parts.
            turn = -(-len(flat) // (2 * threads)) if self._writer.copies else self._writer.turn
            self._in_threads(lambda part: self._gather(store, flat[part], rows[part]), len(flat), turn, threads)
        else:
            draws = {name: values.reshape(-1) for name, values in numbers.items()}
            augmentation = sample_params(self.augment, draws, store.sizes_of(flat))
            work = partial(self._augment, store, flat, augmentation, rows)
            self._in_threads(work, len(flat), self._writer.turn, self._threads)
        return self._writer.as_batch(self._memory.lease(block), slots.shape)

    def close(self) -> None:
        """End the threads; the next batch starts them again."""
        self._helpers.close()

    def _in_threads(self, work: Callable[[slice], None], count: int, turn: int, threads: int) -> None:
        """Do ``work`` on 0..count-1, ``turn`` at a time, here and in ``threads`` - 1 that live until :meth:`close`."""
        parts = iter([slice(k, k + turn) for k in range(0, count, turn)])

        def take_turns() -> None:
            for part in parts:  # one iterator for all: who is done takes the next
                work(part)

        calls = [self._helpers.submit(take_turns) for _ in range(threads - 1)]
        try:
            take_turns()
        finally:  # nobody may write any more: who has not begun never will, and the others are waited for
            withdrawn = self._helpers.withdraw()
            errors = [call.outcome()[1] for call in calls if call not in withdrawn]
        for error in filter(None, errors):
            raise error

    def _gather(self, store: FrameStore, slots: np.ndarray, rows: np.ndarray) -> None:
        if self._writer.copies:
            store.gather_into(slots, rows)
        else:
            self._writer.write(map(store.host_frame, slots.tolist()), rows)

    def _augment(
        self, store: FrameStore, slots: np.ndarray, augmentation: Augmentation, rows: np.ndarray, part: slice
    ) -> None:
        def pictures() -> Iterator[np.ndarray]:
            picture = self._scratch.take(self.framing.image_size, self.framing.image_size, 3)
            for k in range(len(slots))[part]:
                augment(store.host_frame(int(slots[k])), augmentation, k, picture)
                yield picture

        with quick_kernels:
            self._writer.write(pictures(), rows[part])


class Planes(threading.local):
    """Channels of some frames for each thread: ``planes`` uint8 [3, frames, S*S], ``of[k]`` the three [S, S] of one."""

    def __init__(self, frames: int, image_size: int) -> None:
        self.planes = np.empty((3, frames, image_size * image_size), np.uint8)
        self.of = [[plane[k].reshape(image_size, image_size) for plane in self.planes] for k in range(frames)]


class FrameWriter:
    """Writes frames into a batch of one format: bytes as they are, floats by a table of a channel's 256 values.

    Attributes:
        frame_bytes: of a frame in the batch.
        copies: a frame goes into the batch byte for byte.
        turn: most frames of one :meth:`write`.
    """

    def __init__(self, image_size: int, batch_format: BatchFormat) -> None:
        dtype = batch_format.dtype
        self._size, self._dtype, self._channels_last = image_size, dtype, batch_format.channels_last
        self.copies = dtype == torch.uint8 and batch_format.channels_last
        self.frame_bytes = image_size * image_size * 3 * dtype.itemsize
        self.turn = min(max(VALUES_A_TURN // image_size**2, 1), FRAMES_A_TURN)
        self._planes = Planes(self.turn, image_size)
        self._tables = np.empty((3, 0))
        if dtype != torch.uint8:
            self._tables = tables(dtype, batch_format.normalise)
            self._interleaved = np.ascontiguousarray(self._tables.T)[None]

    def write(self, frames: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """``frames``, n uint8 [S, S, 3], each used before the next, into ``rows`` uint8 [n, frame_bytes]."""
        if self.copies:
            for frame, row in zip(frames, rows, strict=True):
                row[:] = frame.reshape(-1)
        elif self._channels_last:
            for frame, row in zip(frames, rows, strict=True):
                cv2.LUT(frame, self._interleaved, dst=row.view(self._tables.dtype).reshape(frame.shape))
        elif self._dtype == torch.uint8:
            for frame, row in zip(frames, rows, strict=True):
                cv2.split(frame, list(row.reshape(3, self._size, self._size)))
        else:
            self._write_planes(frames, rows)

    def _write_planes(self, frames: Iterable[np.ndarray], rows: np.ndarray) -> None:
        """A channel of all frames at once: a call of OpenCV costs as much as looking up a small plane."""
        scratch = self._planes
        for planes, frame in zip(scratch.of, frames, strict=False):
            cv2.split(frame, planes)
        target = rows.view(self._tables.dtype).reshape(len(rows), 3, -1)
        for channel in range(3):
            cv2.LUT(scratch.planes[channel, : len(rows)], self._tables[channel], dst=target[:, channel])

    def as_batch(self, memory: np.ndarray, shape: tuple[int, ...]) -> torch.Tensor:
        """``memory`` uint8 of b*T frames, written -> a tensor [b, T, 3, S, S] over it."""
        numbers = torch.from_numpy(memory).view(self._dtype)
        if self._channels_last:
            return numbers.view(*shape, self._size, self._size, 3).permute(0, 1, 4, 2, 3)
        return numbers.view(*shape, 3, self._size, self._size)


def tables(dtype: torch.dtype, normalise: str) -> np.ndarray:
    """What becomes of bytes 0..255 in each channel, [3, 256]: (byte - offset) * scale in float32, then ``dtype``.

    Where numpy lacks the type (bfloat16) or OpenCV does (float16), its bits as uint16.
    """
    offset, scale = statistics(normalise)
    values = ((torch.arange(256) - offset[:, None]) * scale[:, None]).to(dtype)
    return values.numpy() if dtype == torch.float32 else values.view(torch.int16).numpy().view(np.uint16)
