"""Pixels: decoding frames into a store, and stored frames to augmented, normalised batches.

Legend: S image_size; b windows in a batch; T frames in a window; h, w height and width of a kept frame.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cltt.frames import augment as augment_module
from cltt.frames.decode_cpu import shrink
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore, own_stream

if TYPE_CHECKING:
    from cltt.frames.dali_graphs import AugmentGraph


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BatchMaker:
    """Frames in slots -> a batch: gather, augment, normalise.

    Args:
        framing: of the store.
        device: where batches are wanted.
        dtype: of the batch; uint8 stays raw.
        augment: "none", "crop" or "simclr".
        channels_last: leave C innermost in memory.
        threads: for gathering and augmentation on the CPU.
    """

    def __init__(
        self,
        framing: Framing,
        device: torch.device,
        dtype: torch.dtype,
        augment: str,
        channels_last: bool,
        threads: int,
    ) -> None:
        self.framing, self.device, self.dtype, self.augment = framing, device, dtype, augment
        self.channels_last = channels_last
        self._threads = threads
        self._memory = Recycler()
        self._statistics = [
            torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        ]
        self._graph: AugmentGraph | None = None
        self._pool: ThreadPoolExecutor | None = None

    def make(self, store: FrameStore, slots: np.ndarray, uniform: dict[str, np.ndarray] | None) -> torch.Tensor:
        """The frames in ``slots`` [b, T] of ``store`` -> [b, T, 3, S, S].

        ``uniform``: numbers [b, T] each to draw augmentations from; None without augmentation.
        """
        flat = slots.reshape(-1)
        rows = self._gathered(store, flat) if uniform is None else self._augmented(store, flat, uniform)
        if store.device.type == "cuda":
            store.gathered = torch.cuda.current_stream(self.device).record_event()
        size = self.framing.image_size
        frames = rows.view(*slots.shape, size, size, 3).permute(0, 1, 4, 2, 3)
        return self._finished(frames.to(self.device))

    def _gathered(self, store: FrameStore, slots: np.ndarray) -> torch.Tensor:
        """uint8 [n, S*S*3]; on a CPU the slots are of one page."""
        if store.device.type != "cpu":
            return store.rows().index_select(0, torch.from_numpy(slots).to(store.device))
        size = len(slots) * self.framing.pixels * 3
        page = store.page_in_order(slots)
        if page is not None:  # the batch lies there as it should be: take it instead of copying it
            return torch.from_numpy(self._memory.lent(store.exchange(page, self._memory.take(size))))
        # numpy, not torch: it copies whole rows, and starts no OpenMP threads that spin where the decoders should run.
        page = int(slots[0]) // store.page_slots
        pixels, slots = store.pages[page], slots - page * store.page_slots
        out = self._memory.lent(self._memory.take(size)).reshape(len(slots), -1)
        parts = np.array_split(np.arange(len(slots)), self._threads)

        def gather(part: np.ndarray) -> None:
            if len(part):
                rows = slice(part[0], part[-1] + 1)
                np.take(pixels, slots[rows], axis=0, out=out[rows], mode="clip")

        self._in_threads(gather, parts)
        return torch.from_numpy(out)

    def _augmented(self, store: FrameStore, slots: np.ndarray, uniform: dict[str, np.ndarray]) -> torch.Tensor:
        """uint8 [n, S, S, 3]."""
        flat = {name: values.reshape(-1) for name, values in uniform.items()}
        augmentation = augment_module.drawn(self.augment, flat, store.sizes[slots])
        frames = [store.frame(slot) for slot in slots.tolist()]
        if store.device.type == "cuda":
            return self._augmented_on_gpu(frames, augmentation)
        size = self.framing.image_size
        out = self._memory.lent(self._memory.take(len(frames) * size * size * 3)).reshape(len(frames), size, size, 3)

        def augment(k: int) -> None:
            augment_module.apply(frames[k].numpy(), augmentation, k, shrink, out[k])

        self._in_threads(augment, range(len(frames)))
        return torch.from_numpy(out)

    def _in_threads(self, work: Callable[[Any], None], items: Iterable[Any]) -> None:
        """Do ``work`` on each item, in threads that live until :meth:`close`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="cltt-gather")
        list(self._pool.map(work, items))

    def close(self) -> None:
        """End the threads; the next batch starts them again."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _augmented_on_gpu(self, frames: list[torch.Tensor], augmentation: augment_module.Augmentation) -> torch.Tensor:
        if self._graph is None:
            from cltt.frames.dali_graphs import AugmentGraph

            size = self.framing.image_size
            window = augment_module.blur_window(size)
            self._graph = AugmentGraph(size, window, len(frames), self._threads, self.device.index or 0)
        with own_stream(self.device):
            out = self._graph.augment(frames, augmentation).clone()
        out.record_stream(torch.cuda.current_stream(self.device))
        return out

    def _finished(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [b, T, 3, S, S] with C innermost in memory -> the type and memory order asked for."""
        if self.dtype == torch.uint8:
            return frames if self.channels_last else frames.contiguous()
        return normalise(frames, self.dtype, *self._statistics, channels_last=self.channels_last)


class Recycler:
    """Memory for batches on the CPU: a block is handed out again once nobody holds it any more.

    Fresh memory costs as much as the copy into it (the kernel clears each page), and a training loop drops a batch
    every step. A tensor made by torch.from_numpy holds its array, and a view holds the array that owns its memory, so
    the owner's reference count tells.
    """

    MOST_BLOCKS = 3

    def __init__(self) -> None:
        self._lent: list[np.ndarray] = []  # owners, never views

    def take(self, size: int) -> np.ndarray:
        """A block of ``size`` bytes, contents undefined: one that was lent and came back, or a new one."""
        for k, holders in enumerate(_holders(self._lent)):
            if holders == _NOBODY and self._lent[k].nbytes == size:
                return self._lent.pop(k)
        return np.empty(size, np.uint8)

    def lent(self, block: np.ndarray) -> np.ndarray:
        """Note that ``block`` goes to the consumer, and return it; the last few are watched for their return."""
        owner = block if block.base is None else block.base
        self._lent = [*self._lent[1 - self.MOST_BLOCKS :], owner]
        return block


def _holders(blocks: list[np.ndarray]) -> list[int]:
    """References to each block, those of looking included."""
    return [sys.getrefcount(block) for block in blocks]


# What looking alone amounts to differs between Python versions, so it is measured.
_NOBODY = _holders([np.empty(1, np.uint8)])[0]


def normalise(
    frames: torch.Tensor, dtype: torch.dtype, mean: torch.Tensor, std: torch.Tensor, *, channels_last: bool
) -> torch.Tensor:
    """uint8 [..., 3, h, w] -> (frames / 255 - mean) / std in ``dtype``, computed in float32; mean, std [3, 1, 1]."""
    order = torch.preserve_format if channels_last else torch.contiguous_format
    out = torch.empty_like(frames, dtype=torch.float32, memory_format=order)
    torch.sub(frames, mean * 255, out=out)
    return out.mul_(1 / (std * 255)).to(dtype)
