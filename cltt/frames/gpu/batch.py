"""Frames in a store on a GPU -> a batch there; the host only queues the work (see batch.py for the CPU).

Legend: S image_size; b windows in a batch; T frames in a window; n = b*T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cltt.config import Augment
from cltt.frames.augment import blur_window, sample_params
from cltt.frames.gather import BatchFormat, gather, on_device
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore, own_stream

if TYPE_CHECKING:
    from cltt.frames.gpu.dali_graphs import AugmentGraph


class GpuBatchMaker:
    """Gather, augment, normalise on ``device``; frames as ``framing`` stores them, batches in ``batch_format``."""

    def __init__(
        self, framing: Framing, device: torch.device, batch_format: BatchFormat, augment: Augment, threads: int
    ) -> None:
        self.framing, self.device, self.format, self.augment = framing, device, batch_format, augment
        self._threads = threads
        self._graph: AugmentGraph | None = None

    def gathered(self, store: FrameStore, slots: np.ndarray) -> torch.Tensor:
        """Slots [b, T] -> [b, T, 3, S, S], queued on the current stream; nothing waits."""
        flat = slots.reshape(-1)
        frames = gather(store.rows(), on_device(flat, self.device), self.framing.image_size, self.format)
        store.mark_read(flat)
        return frames.view(*slots.shape, *frames.shape[1:])

    def lay_out(self, rows: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """uint8 [b*T, S*S*3] on the device -> [b, T, 3, S, S] in the type and memory order asked for."""
        slots = torch.arange(len(rows), device=self.device)
        frames = gather(rows, slots, self.framing.image_size, self.format)
        return frames.view(*shape, *frames.shape[1:])

    def augmented(self, store: FrameStore, slots: np.ndarray, numbers: dict[str, np.ndarray]) -> torch.Tensor:
        """Slots [n] -> uint8 [n, S*S*3]; returns when it is done, on a stream of the thread's own."""
        flat = {name: values.reshape(-1) for name, values in numbers.items()}
        params = sample_params(self.augment, flat, store.sizes[slots])
        if self._graph is None:
            from cltt.frames.gpu.dali_graphs import AugmentGraph

            size, turns_hue = self.framing.image_size, self.augment.jitter[3] > 0
            self._graph = AugmentGraph(
                size, blur_window(size), turns_hue, len(slots), self._threads, self.device.index or 0
            )
        with own_stream(self.device):
            return self._graph.augment([store.frame(slot) for slot in slots.tolist()], params).clone().flatten(1)
