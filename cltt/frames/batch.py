"""Stored frames to augmented, normalised batches, wherever the frames lie and the batches are wanted.

Legend: S image_size; b windows in a batch; T frames in a window; h, w height and width of a stored frame.
"""

from __future__ import annotations

import numpy as np
import torch

from cltt.config import Augment
from cltt.frames.batch_cpu import CpuBatchMaker
from cltt.frames.gather import BatchFormat
from cltt.frames.geometry import Framing
from cltt.frames.gpu.batch import GpuBatchMaker
from cltt.frames.store import FrameStore


class BatchMaker:
    """Frames in slots -> a batch: gather, augment, normalise.

    Args:
        framing: of the store.
        device: where batches are wanted.
        dtype: of the batch; uint8 stays raw.
        augment: how frames are augmented.
        channels_last: leave C innermost in memory.
        threads: for gathering and augmentation on the CPU.
        normalise: of float batches, ``imagenet`` (its mean and deviation) or ``none`` (0 to 1).
    """

    def __init__(
        self,
        framing: Framing,
        device: torch.device,
        dtype: torch.dtype,
        augment: Augment,
        channels_last: bool,
        threads: int,
        normalise: str = "imagenet",
    ) -> None:
        self.device = device
        # Bytes go to another device as they are, a quarter of what floats would take, and are normalised there.
        wanted = BatchFormat(dtype, channels_last, normalise)
        made_here = wanted if device.type == "cpu" else BatchFormat(torch.uint8, True, normalise)
        self._on_cpu = CpuBatchMaker(framing, made_here, augment, threads)
        self._on_gpu = GpuBatchMaker(framing, device, wanted, augment, threads)

    def make(
        self, store: FrameStore, slots: np.ndarray, numbers: dict[str, np.ndarray] | None, *, alone: bool = False
    ) -> torch.Tensor:
        """The frames in ``slots`` [b, T] of ``store`` -> [b, T, 3, S, S].

        ``numbers``: random ones, [b, T] each, to draw augmentations from; None without augmentation. ``alone``: what is
        cheap on a CPU, all but augmenting, in the calling thread alone, as the decoders need the other cores.
        """
        if store.device.type != "cpu" and numbers is None:
            return self._on_gpu.gathered(store, slots)
        return self.finish(self.begin(store, slots, numbers, alone=alone), slots.shape)

    def begin(
        self, store: FrameStore, slots: np.ndarray, numbers: dict[str, np.ndarray] | None, *, alone: bool = False
    ) -> torch.Tensor:
        """What of :meth:`make` may wait for the device, and may be done in another thread; the slots are read then."""
        if store.device.type == "cpu" or numbers is None:
            return self._on_cpu.make(store, slots, numbers, alone=alone)
        return self._on_gpu.augmented(store, slots.reshape(-1), numbers)

    def finish(self, begun: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The rest, queued on the current stream: what :meth:`begin` made of slots of ``shape`` [b, T] -> the batch."""
        if begun.device.type != "cpu":
            begun.record_stream(torch.cuda.current_stream(begun.device))
            return self._on_gpu.lay_out(begun, shape)
        if self.device.type == "cpu":
            return begun
        rows = begun.permute(0, 1, 3, 4, 2).reshape(len(begun.flatten(0, 1)), -1).to(self.device)
        return self._on_gpu.lay_out(rows, shape)

    def close(self) -> None:
        """End the threads; the next batch starts them again."""
        self._on_cpu.close()
