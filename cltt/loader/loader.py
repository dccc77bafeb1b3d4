"""Batches of windows; a frame is read and decoded once per block, for all windows that use it.

Legend: B windows per step over all ranks; b = B/world_size; T frames in a window; S image_size; C = 3.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cltt.config import Augment, AugmentSettings, ViewSettings, require, saved
from cltt.distributed import RankInfo, pick_device, rank_info
from cltt.errors import SettingsError
from cltt.files.atomic import check_writable
from cltt.files.retry import IO_PATIENCE, set_policy
from cltt.frames.augment import random_numbers
from cltt.frames.batch import BatchMaker
from cltt.frames.decoders import best_decoder
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from cltt.loader.ahead import Ahead
from cltt.loader.bad_frames import BadFrames, Dataset
from cltt.loader.clock import Clock
from cltt.loader.fetch import FrameFetcher, Totals
from cltt.loader.kept import KeptFrames, open_kept
from cltt.loader.memory import slots_for
from cltt.loader.prefetch import PlannedStep, Prefetcher
from cltt.loader.slots import SlotTable, block_uses
from cltt.sampling.epoch_plan import EpochPlan
from cltt.sampling.order_state import require_unchanged
from cltt.sampling.windows import WindowIndex

log = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
STATE_VERSION = 1
# The block in use, and the next one, which is decoded meanwhile.
BLOCKS_HELD = 2
BATCHES_HELD = 2  # the one in use, and the next one
STEPS_AHEAD = 8  # held in frame memory where no frame has to stay for a whole block


@dataclass(frozen=True)
class Batch:
    """One step's windows.

    Attributes:
        frames: [b, T, C, S, S], normalised if of a float type, raw 0..255 if uint8.
        window_ids: int64 [b], on the CPU like all ids.
        clip_ids: int64 [b].
        frame_ids: int64 [b, T], dataset-wide.
    """

    frames: torch.Tensor
    window_ids: torch.Tensor
    clip_ids: torch.Tensor
    frame_ids: torch.Tensor


class WindowLoader:
    """Iterable over the batches of the rest of an epoch; then moves on to the next epoch.

    Args:
        dataset: a :class:`~cltt.ShardDataset`, or anything with its reading methods.
        index: the windows of this dataset.
        batch_size: B, windows per step over all ranks.
        image_size: S, pixels.
        device: ``"auto"`` (CUDA, else MPS, else CPU) or a torch device, where the batches are wanted.
        dtype: float32, bfloat16, float16 (normalised) or uint8 (raw).
        normalise: of float batches: ``imagenet`` (its mean and standard deviation) or ``none`` (0 to 1).
        augment: ``none``, ``crop`` or ``simclr``, or :class:`~cltt.config.AugmentSettings` for other values.
        augment_scope: augmentations are drawn per ``frame`` or per ``window``.
        region, region_effect, region_scale: which box of a frame counts, see :class:`~cltt.region.Region`.
        seed, min_gap, depth, run, clips_per_block: of the order, see :class:`~cltt.EpochPlan`.
        rank, world_size: which part of each batch this process takes.
        cache_bytes: maximum memory for decoded frames; None: what two blocks need, but no more than a share of what is
            free. With less, some frames are decoded again.
        num_threads: threads that read and decode.
        channels_last: keep C innermost in memory ([b, T, C, S, S] stays the shape); for uint8 it saves a copy.
        max_bad_frames: how many frames may be unusable (counted once each, on this rank) before the run stops. The
            nearest good frame of the window replaces a bad one or, if the window has none, the nearest of the clip.
        keep_bytes: maximum main memory for kept frames: decoded frames that stay from epoch to epoch, one copy per
            node, so that they are decoded once. Where not all fit, a fixed share of them stays. None: what the windows
            need, but no more than half of what is free; 0: no frames are kept.
        keep_dir: folder on the node's own disk that holds the kept frames instead. Later processes on the same node
            use its file again, until the machine restarts.
        io_patience: seconds for which all reads of this process are retried after a transient error (EIO, ESTALE ...).
            Such an error makes no frame bad. The value set last in a process counts.

    Attributes:
        give_up: called regularly while the consumer waits for a batch; once it returns true, the loader raises GaveUp
            and its position stays the same.

    Threads run only while an iterator is open; leaving the loop, closing the loader or leaving its ``with`` ends them.

    Raises:
        SettingsError: a value that cannot work.
        DataError: while iterating, more than ``max_bad_frames`` frames cannot be read or decoded.
        StorageError: while iterating, the storage did not answer for ``io_patience`` seconds.
    """

    def __init__(
        self,
        dataset: Dataset,
        index: WindowIndex,
        batch_size: int,
        *,
        image_size: int = 224,
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        augment: str | AugmentSettings = "none",
        augment_scope: str = "frame",
        seed: int = 0,
        min_gap: int = 0,
        depth: int | None = None,
        run: int | None = None,
        clips_per_block: int = 0,
        rank: int = 0,
        world_size: int = 1,
        cache_bytes: int | None = None,
        num_threads: int = 4,
        channels_last: bool = False,
        max_bad_frames: int = 100,
        region: str = "none",
        region_effect: str | None = None,
        region_scale: float | None = None,
        normalise: str = "imagenet",
        io_patience: float = IO_PATIENCE,
        keep_bytes: int | None = None,
        keep_dir: str | Path | None = None,
    ) -> None:
        require(dtype in DTYPES, f"dtype is {dtype}; it must be one of {', '.join(map(str, DTYPES))}")
        self._augment = augment if isinstance(augment, AugmentSettings) else AugmentSettings(augment=augment)
        self._view = ViewSettings(
            augment_scope=augment_scope,
            region=region,
            region_effect=region_effect,
            region_scale=region_scale,
            normalise=normalise,
        )
        self._view.looked_at.check_boxes(dataset)
        require(num_threads >= 1, f"num_threads is {num_threads}; it must be at least 1")
        require(max_bad_frames >= 0, f"max_bad_frames is {max_bad_frames}; it must be 0 or more")
        require(cache_bytes is None or cache_bytes > 0, f"cache_bytes is {cache_bytes}; it must be above 0, or None")
        require(keep_bytes is None or keep_bytes >= 0, f"keep_bytes is {keep_bytes}; it must be 0 or more, or None")
        if keep_dir is not None:
            check_writable(Path(keep_dir), "give another --keep-dir")
        self.dataset, self.index = dataset, index
        set_policy(io_patience)
        self.give_up: Callable[[], bool] = lambda: False
        self.device = chosen_device(device)
        self._rank_info = RankInfo(rank, world_size)
        self._cache_bytes, self._threads = cache_bytes, num_threads
        self._keep_bytes, self._keep_dir = keep_bytes, None if keep_dir is None else Path(keep_dir)
        self._kept: KeptFrames | None = None
        drawn = self._augment.augmentation
        # An augmentation that crops needs a margin to crop from.
        framing = Framing(image_size=image_size, margin=drawn.crop_area is not None, region=self._view.looked_at)
        self._decoder = best_decoder(framing, self.device, num_threads)
        self._dtype = dtype
        self._maker = BatchMaker(framing, self.device, dtype, drawn, channels_last, num_threads, normalise)
        self._bad = BadFrames(dataset, max_bad_frames)
        self._fetcher: FrameFetcher | None = None
        self._prefetcher: Prefetcher | None = None
        self._slots = 0  # in frame memory; 0: not known yet
        self._reuses = True  # whether a block uses frames more than once
        self._frames_reused = 0
        self._clock = Clock()
        self._longest_block = 0  # steps that the frame memory is sized for
        self.plan = EpochPlan(
            index, batch_size, seed=seed, min_gap=min_gap, depth=depth, run=run, clips_per_block=clips_per_block
        )
        self._step = 0
        self.plan.batch(0, rank=rank, world_size=world_size)  # raises if rank or world_size cannot work

    def __len__(self) -> int:
        """Steps in an epoch."""
        return len(self.plan)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration continues or begins."""
        return self.plan.epoch

    def __enter__(self) -> WindowLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads and open iterators. The loader can be iterated again afterwards."""
        if self._prefetcher is not None:
            self._prefetcher.close()
        self._maker.close()

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; does nothing if the loader is in that epoch already."""
        if epoch != self.epoch:
            self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches returned, not those made ahead: plain values, the same on every rank."""
        plan = self.plan.state_dict(self._step)
        return {"version": STATE_VERSION, "plan": plan, **self._pixels()}

    def _pixels(self) -> dict[str, Any]:
        """What the pixels of a batch depend on, apart from the order."""
        size = self._decoder.framing.image_size
        return {
            "fingerprint": self.dataset.fingerprint,
            "image_size": size,
            **saved(self._augment),
            **saved(self._view),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, on any number of ranks. SettingsError if its data or settings differ."""
        require(
            state.get("version") == STATE_VERSION,
            f"the loader's state has version {state.get('version')}, this program reads version {STATE_VERSION}; "
            "resume with the version of cltt that saved it",
        )
        require_unchanged("loader", {**saved(AugmentSettings()), **saved(ViewSettings()), **state}, self._pixels())
        self.plan.check_state(state["plan"])
        self._go_to(state["plan"]["epoch"], state["plan"]["step"])

    def stats(self) -> dict[str, float]:
        """Totals of this rank since the loader was made.

        frames_read, frames_decoded, bytes_read; frames_without_box: with region boxes, frames read that have no box
        and use the center; frames_reused: frames in windows that needed no decoding of their own; frames_bad: distinct
        frames that could not be used; wait_share: share (0..1) of the iterations' time, counted to the end of their
        last step, that the consumer waited for batches.
        """
        totals = (self._fetcher.totals if self._fetcher else Totals())._asdict()
        copied = totals.pop("frames_copied")
        return {
            **totals,
            "frames_reused": self._frames_reused + copied,
            "frames_bad": len(self._bad),
            "wait_share": self._clock.share,
        }

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        if self._step < len(self.plan):
            yield from self._rest_of_epoch()
        self._go_to(self.epoch + 1, 0)

    def _rest_of_epoch(self) -> Iterator[Batch]:
        prefetcher = self._prefetcher = self._new_prefetcher()
        at_exit = weakref.finalize(self, prefetcher.close)
        ahead = None
        try:
            prefetcher.begin()
            ahead = Ahead(lambda: self._begin(prefetcher), len(self.plan) - self._step) if self._begins_ahead else None
            self._clock.resume()
            while self._step < len(self.plan):
                batch = self._finish(*(ahead.take() if ahead else self._begin(prefetcher)))
                self._step += 1
                self._clock.waited()
                try:
                    yield batch
                finally:  # also where the consumer leaves after this batch
                    self._clock.worked()
        finally:
            prefetcher.close()
            at_exit.detach()
            if ahead:
                ahead.close()
            self._maker.close()

    @property
    def _begins_ahead(self) -> bool:
        """Whether a thread begins batches: DALI's augmentation blocks, and the consumer should not wait for it."""
        return self._decoder.device.type == "cuda" and self._augments

    @property
    def _augments(self) -> bool:
        return self._augment.augmentation != Augment()

    def _go_to(self, epoch: int, step: int) -> None:
        self.close()
        self.plan, self._step = self.plan.at_epoch(epoch), step

    def keeps(self) -> tuple[int, float]:
        """(bytes of main memory per node for kept frames, share (0..1) of the windows' frames that are kept)."""
        self._frame_slots()
        share = 0.0 if self._kept is None else self._kept.share
        return (self._kept.planned_bytes if self._kept is not None and self._keep_dir is None else 0), share

    def host_bytes(self) -> tuple[int, int]:
        """Bytes of main memory for (frame memory, batches); 0 for what is on another device."""
        framing, on_cpu = self._decoder.framing, self.device.type == "cpu"
        batch = self._step_frames * framing.image_size**2 * 3 * self._dtype.itemsize
        frames = self._frame_slots() * framing.pixels * 3 if self._decoder.device.type == "cpu" else 0
        return frames, BATCHES_HELD * batch if on_cpu else 0

    def _new_prefetcher(self) -> Prefetcher:
        if self._fetcher is None:
            store = self._new_store()
            self._fetcher = FrameFetcher(self.dataset, self._decoder, store, self._bad, self._kept)
        elif self._prefetcher is not None and self._prefetcher.running:
            # A thread hangs in a read; when it comes back it must not write to memory that is in use again.
            self._fetcher = self._fetcher.with_store(self._new_store())
        if self._reuses and self._block_steps > self._longest_block:
            log.warning(
                "epoch %d has blocks of %d steps, but frame memory for blocks of %d: some frames will be decoded again",
                self.epoch,
                self._block_steps,
                self._longest_block,
            )
        store, rank_info = self._fetcher.store, self._rank_info
        return Prefetcher(
            block_uses(self.plan, self._step, rank=rank_info.rank, world_size=rank_info.world_size),
            self._fetcher.fetch,
            SlotTable(store.slots, self._kept if store.device.type == "cpu" else None),
            start=self._step,
            threads=self._threads,
            job_frames=self._decoder.job_frames,
        )

    @property
    def _step_frames(self) -> int:
        """b*T"""
        return self.plan.batch_size // self._rank_info.world_size * self.index.window_size

    @property
    def _block_steps(self) -> int:
        """Steps of the longest block of this epoch; other epochs may have blocks of other lengths."""
        return -(-len(self.plan) // self.plan.num_blocks)

    def _new_store(self) -> FrameStore:
        store = FrameStore(self._frame_slots(), self._decoder.framing, self._decoder.device)
        if self._kept is not None and store.device.type == "cpu":  # windows use kept frames in place, without a copy
            store.extend(self._kept.sizes, self._kept.pixels)
        return store

    def _frame_slots(self) -> int:
        """Number of frames that frame memory holds; computed once, for the epoch at that time."""
        if not self._slots:
            block = self.plan.frames_per_block(self._rank_info.rank, self._rank_info.world_size)
            needed = block * min(BLOCKS_HELD, self.plan.num_blocks)
            self._longest_block = self._block_steps
            self._reuses = block < self._step_frames * self._longest_block
            if not self._reuses:  # a few steps are enough, and stay in the processor's caches
                needed = block = min(block, STEPS_AHEAD * self._step_frames)
            size = self._decoder.framing.pixels * 3
            on_cpu = self._decoder.device.type == "cpu"
            cache = min(needed * size, self._cache_bytes or needed * size) if on_cpu else 0
            self._kept = open_kept(self.dataset, self.index, self._decoder, self._keep_bytes, self._keep_dir, cache)
            if self._kept is not None and on_cpu:  # a kept frame leaves its slot after one step
                others, ahead = 1 - self._kept.share, STEPS_AHEAD * self._step_frames
                needed, block = (min(frames, int(frames * others) + ahead) for frames in (needed, block))
            self._slots = slots_for(needed, block, self._step_frames, size, self._cache_bytes, self._decoder.device)
        return self._slots

    def _begin(self, prefetcher: Prefetcher) -> tuple[PlannedStep, torch.Tensor]:
        """The next step and what of its batch can be made ahead, once its frames are decoded; frees its slots."""
        assert self._fetcher is not None
        ready = prefetcher.take(self.give_up)
        uses, store = ready.uses, self._fetcher.store
        slots = self._bad.substitute(uses.frame_ids, ready.slots, self._fetcher.fetch, store.slots)
        numbers = self._random_numbers(uses.window_ids, uses.frame_ids)
        make = self._maker.begin if self._begins_ahead else self._maker.make
        begun = make(store, slots, numbers, alone=ready.chunk.awaited)
        prefetcher.release(ready.step)
        return ready, begun

    def _finish(self, ready: PlannedStep, begun: torch.Tensor) -> Batch:
        uses = ready.uses
        frames = self._maker.finish(begun, uses.frame_ids.shape) if self._begins_ahead else begun
        clip_ids, _ = self.index.locate(uses.window_ids)
        self._frames_reused += uses.frame_ids.size - ready.fresh
        # Copies: the arrays belong to the plan, the batch to the consumer.
        return Batch(frames, *(torch.from_numpy(np.array(ids)) for ids in (uses.window_ids, clip_ids, uses.frame_ids)))

    def _random_numbers(self, window_ids: np.ndarray, frame_ids: np.ndarray) -> dict[str, np.ndarray] | None:
        if not self._augments:
            return None
        return random_numbers(self.plan.seed, self.epoch, window_ids, frame_ids, self._view.augment_scope)


def chosen_device(device: str | torch.device) -> torch.device:
    """The device asked for; for ``auto`` or without a number, this rank's. SettingsError if there is none."""
    try:
        asked = torch.device(device) if device != "auto" else None
    except RuntimeError:
        raise SettingsError(f"device is {device!r}; it must be auto, cuda, cuda:N, mps or cpu") from None
    if asked is None or asked.index is None:
        return pick_device(str(device), rank_info())
    return asked
