"""Batches of windows: each frame is read and decoded once a block and gathered into every window that needs it.

Legend: B windows a step over all ranks; b = B/world_size; T frames in a window; S image_size; C = 3.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cltt._cache import BlockUses, SlotTable
from cltt._prefetch import Prefetcher, ReadyStep
from cltt.config import require
from cltt.distributed import RankFacts, pick_device
from cltt.errors import DataError, FrameError, SettingsError
from cltt.pipeline import CpuDecoder, FrameStore, Framing, normalise
from cltt.reader import ShardDataset
from cltt.sampler import EpochPlan
from cltt.windows import WindowIndex

log = logging.getLogger(__name__)

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
AUGMENTS = ("none", "crop", "simclr")
SCOPES = ("frame", "window")
BLOCKS_HELD = 2


@dataclass(frozen=True)
class Batch:
    """One step's windows.

    Attributes:
        frames: [b, T, C, S, S], normalised with ImageNet's statistics if of a float type, raw 0..255 if uint8.
        window_ids: int64 [b], on the CPU like all ids.
        clip_ids: int64 [b].
        frame_ids: int64 [b, T], dataset-wide.
    """

    frames: torch.Tensor
    window_ids: torch.Tensor
    clip_ids: torch.Tensor
    frame_ids: torch.Tensor


class WindowLoader:
    """Iterable over the batches of an epoch; iterating gives the rest of the epoch, then moves on to the next one.

    Args:
        dataset: a :class:`~cltt.reader.ShardDataset`, or anything with its reading methods.
        index: the windows; of the same dataset.
        batch_size: B, windows a step over all ranks.
        image_size: S, pixels.
        device: ``"auto"`` (CUDA, else MPS, else CPU) or a torch device, where the batches are wanted.
        dtype: float32, bfloat16, float16 (normalised) or uint8 (raw).
        augment, augment_scope: ``none``, ``crop`` or ``simclr``; drawn for each ``frame`` or once a ``window``.
        seed, min_gap, depth, run: of the order, see :class:`~cltt.sampler.EpochPlan`.
        rank, world_size: which part of each batch this process takes.
        cache_bytes: most memory for decoded frames; None: what two blocks need, but no more than a fair share of what is
            free. Less only means that some frames are decoded again.
        num_threads: threads that read and decode.
        channels_last: keep C innermost in memory ([b, T, C, S, S] stays the shape); for uint8 it saves a copy.
        max_bad_frames: how many frames may be unreadable before the run stops.

    Raises:
        SettingsError: a value that cannot work.
        DataError: while iterating, more than ``max_bad_frames`` frames cannot be read or decoded.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        index: WindowIndex,
        batch_size: int,
        *,
        image_size: int = 224,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        augment: str = "none",
        augment_scope: str = "frame",
        seed: int = 0,
        min_gap: int = 0,
        depth: int | None = None,
        run: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        cache_bytes: int | None = None,
        num_threads: int = 4,
        channels_last: bool = False,
        max_bad_frames: int = 100,
    ) -> None:
        require(dtype in (*FLOAT_TYPES, torch.uint8), f"dtype is {dtype}; it must be a float type or torch.uint8")
        require(augment in AUGMENTS, f"augment is {augment!r}; it must be one of {', '.join(AUGMENTS)}")
        require(augment_scope in SCOPES, f"augment_scope is {augment_scope!r}; it must be one of {', '.join(SCOPES)}")
        require(num_threads >= 1, f"num_threads is {num_threads}; it must be at least 1")
        self.dataset, self.index = dataset, index
        self.device = pick_device(device, RankFacts()) if isinstance(device, str) else device
        self.dtype, self.channels_last = dtype, channels_last
        self._framing = Framing(image_size=image_size, margin=augment != "none")
        self._facts = {"image_size": image_size, "augment": augment, "augment_scope": augment_scope}
        self._order = {"seed": seed, "min_gap": min_gap, "depth": depth, "run": run}
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._threads, self._cache_bytes, self._max_bad = num_threads, cache_bytes, max_bad_frames
        self._step = 0
        self.plan = self._make_plan(0)
        self._decoder = CpuDecoder(self._framing)
        self._counts = Counts()
        self._bad: dict[int, FrameError] = {}
        self._lock = threading.Lock()
        self._store: FrameStore | None = None
        self._stop: weakref.finalize | None = None

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.plan)

    @property
    def epoch(self) -> int:
        """The epoch that iterating goes on with."""
        return int(self.plan.epoch)

    def __enter__(self) -> WindowLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads. The loader can be iterated again afterwards."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; nothing changes if the loader is in that epoch already."""
        if epoch != self.epoch:
            self.close()
            self.plan, self._step = self._make_plan(epoch), 0

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: a few plain values, the same on every rank."""
        return {"plan": self.plan.state_dict(self._step), "frames": dict(self._facts), "data": self.dataset.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. SettingsError if it belongs to other data or settings."""
        self.plan.check_state(state["plan"])
        here = {"data": self.dataset.fingerprint, **self._facts}
        there = {"data": state["data"], **state["frames"]}
        differ = [f"{name} was {there[name]}, is {here[name]}" for name in here if here[name] != there[name]]
        if differ:
            raise SettingsError(f"the saved position belongs to other frames: {'; '.join(differ)}")
        self.close()
        self.plan, self._step = self._make_plan(state["plan"]["epoch"]), state["plan"]["step"]

    def stats(self) -> dict[str, float]:
        """frames_read, frames_decoded, frames_reused, frames_bad, bytes_read, and wait_share (0..1) since the start."""
        with self._lock:
            return self._counts.as_dict(len(self._bad))

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        prefetcher = self._start()
        try:
            while self._step < len(self.plan):
                batch = self._next_batch(prefetcher)
                self._step += 1
                yield batch
        finally:
            self.close()
        self.plan, self._step = self._make_plan(self.epoch + 1), 0

    def _make_plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(self.index, self._batch_size, epoch=epoch, **self._order)

    def _start(self) -> Prefetcher:
        slots = self._slots()
        if self._store is None:
            self._store = FrameStore(slots, self._framing, torch.device("cpu"))
        prefetcher = Prefetcher(self._blocks(), self._fill, SlotTable(slots), start=self._step, threads=self._threads)
        self._stop = weakref.finalize(self, prefetcher.close)
        return prefetcher

    def _blocks(self) -> Iterator[BlockUses]:
        """The uses of each block from the current step on; each knows its successor."""
        plan, first = self.plan, self.plan.block_of(self._step) if self._step < len(self.plan) else self.plan.num_blocks
        following = None
        for block in range(first, plan.num_blocks):
            uses = following or self._block_uses(plan, block)
            following = self._block_uses(plan, block + 1) if block + 1 < plan.num_blocks else None
            if following is not None:
                uses.join(following)
            yield uses

    def _block_uses(self, plan: EpochPlan, block: int) -> BlockUses:
        return BlockUses(plan, self.index, block, self._rank, self._world_size)

    def _slots(self) -> int:
        need = BLOCKS_HELD * self.plan.frames_per_block(self._rank, self._world_size)
        return max(need, 1)

    def _fill(self, frames: np.ndarray, slots: np.ndarray) -> None:
        assert self._store is not None
        found = self.dataset.read_each(frames)
        good = [k for k, jpeg in enumerate(found) if not isinstance(jpeg, FrameError)]
        jpegs = [found[k] for k in good]
        failures = self._decoder.decode(jpegs, slots[good].tolist(), self._store)
        bad = [error for error in found if isinstance(error, FrameError)]
        bad += [self._frame_error(int(frames[good[k]]), reason) for k, reason in failures.items()]
        with self._lock:
            self._counts.frames_read += len(jpegs)
            self._counts.bytes_read += sum(map(len, jpegs))
            self._counts.frames_decoded += len(jpegs) - len(failures)
        for error in bad:
            self._note_bad(error)

    def _frame_error(self, frame: int, reason: str) -> FrameError:
        return FrameError(frame, self.dataset.frame_name(frame), reason)

    def _note_bad(self, error: FrameError) -> None:
        log.warning("bad frame replaced by its nearest good neighbour: %s", error)
        with self._lock:
            self._bad[error.frame_id] = error
        if len(self._bad) > self._max_bad:
            raise DataError(
                f"more than {self._max_bad} frames cannot be used: {', '.join(map(str, self._bad.values()))}"
            )

    def _next_batch(self, prefetcher: Prefetcher) -> Batch:
        began = time.perf_counter()
        ready = prefetcher.take()
        self._counts.waited += time.perf_counter() - began
        batch = self._assemble(ready)
        prefetcher.release(ready.step)
        return batch

    def _assemble(self, ready: ReadyStep) -> Batch:
        assert self._store is not None
        uses, size = ready.uses, self._framing.image_size
        rows = self._store.pixels.index_select(0, torch.from_numpy(ready.slots.reshape(-1)))
        frames = rows.view(*ready.slots.shape, size, size, 3).permute(0, 1, 4, 2, 3).to(self.device)
        if not self.channels_last:
            frames = frames.contiguous()
        if self.dtype != torch.uint8:
            frames = normalise(frames, self.dtype)
        clip_ids, _ = self.index.locate(uses.window_ids)
        return Batch(
            frames,
            *(torch.from_numpy(np.ascontiguousarray(ids)) for ids in (uses.window_ids, clip_ids, uses.frame_ids)),
        )


@dataclass
class Counts:
    """Running totals behind :meth:`WindowLoader.stats`."""

    frames_read: int = 0
    frames_decoded: int = 0
    bytes_read: int = 0
    waited: float = 0.0

    def as_dict(self, bad: int) -> dict[str, float]:
        return {"frames_read": self.frames_read, "frames_decoded": self.frames_decoded, "frames_bad": bad}
