"""The order of an epoch: (seed, epoch, step) -> window ids, the same for any number of ranks, from any step.

Windows are drawn in short runs of consecutive windows, and `depth` steps share one pool (a block) of runs, so that a
frame is decoded once for all the windows of the block that hold it; within the block the runs are dealt out so that no
batch holds two windows of a clip that share, or nearly share, frames.

Legend: N windows, B windows a batch over all ranks, b = B/world_size; S = N//B steps; block k holds K_k steps.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from cltt.config import require
from cltt.errors import SettingsError
from cltt.sampling.blocks import Block, FreeBlock, ShuffledRuns, SingleWindows
from cltt.sampling.permutation import MAX_SEED, seed_sequence
from cltt.sampling.windows import WINDOW_FIELDS, WindowIndex

STATE_VERSION = 1
DEFAULT_DEPTH = 128
# One block in four runs: with one run a row, consecutive batches would show the same scenes.
RUNS_PER_DEPTH = 4
# What each random stream of an epoch is for.
_LAYOUT, _SHIFT, _BLOCK = range(3)
# Frames an exact frames_per_block may go through.
EXACT_FRAMES = 4_000_000
T = TypeVar("T")


class EpochPlan:
    """Which windows each step of one epoch takes; random access, nothing kept but a table of runs and recent blocks.

    Args:
        index: the windows.
        batch_size: B, windows a step over all ranks.
        seed, epoch: whole numbers from 0 to 2**64-1; every pair gives an order of its own.
        min_gap: frames to leave between two windows of a clip in one batch, beyond not overlapping.
        depth: steps that share a block of windows; None: 128, or as many as keeping windows apart takes. Raised to that
            where it is less. More depth saves decoding and costs frame memory.
        run: consecutive windows of a clip drawn together; None: depth // 4, and 1 where no two windows can disturb each
            other.

    Attributes:
        index, batch_size, seed, epoch, min_gap, depth, run: as given or resolved.
        num_blocks: blocks of ``depth`` steps or a little more in the epoch.
        overlaps: row pairs of a batch, summed over the epoch, whose windows lie in one clip with starts less than
            span + min_gap frames apart: 0 wherever the epoch has ``index.steps_needed(span + min_gap)`` steps.

    Raises:
        SettingsError: (a ValueError) fewer windows than ``batch_size``, or a value out of its range.
    """

    def __init__(
        self,
        index: WindowIndex,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        min_gap: int = 0,
        depth: int | None = None,
        run: int | None = None,
    ) -> None:
        self.index = index
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.seed = _whole("seed", seed, 0, MAX_SEED)
        self.epoch = _whole("epoch", epoch, 0, MAX_SEED)
        self.min_gap = _whole("min_gap", min_gap, 0)
        require(
            self.batch_size <= len(index),
            f"batch_size is {batch_size}, but there are only {len(index)} windows; take a batch_size of at most that",
        )
        self._gap = index.span + self.min_gap
        self._steps_needed = index.steps_needed(self._gap)
        self.depth = self._resolved_depth(depth)
        self.run = self._resolved_run(run)
        self._num_steps = len(index) // self.batch_size
        self.num_blocks = max(1, self._num_steps // self.depth)
        self._layout = self._shuffled()
        self._blocks = _Recent(self._build_block, 2)
        self._first_uses = _Recent(self._build_first_use, 4)
        self.overlaps = self._counted_overlaps()

    def __len__(self) -> int:
        return self._num_steps

    def __repr__(self) -> str:
        return (
            f"EpochPlan({len(self)} steps of {self.batch_size} windows in {self.num_blocks} blocks, seed={self.seed}, "
            f"epoch={self.epoch}, min_gap={self.min_gap}, depth={self.depth}, run={self.run})"
        )

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Window ids of rows ``rank*b`` to ``(rank+1)*b - 1`` of the batch at ``step``: int64 [B/world_size].

        Raises:
            IndexError: a ``step`` outside 0..len-1.
            SettingsError: (a ValueError) ``world_size`` does not divide B, or ``rank`` is outside 0..world_size-1.
        """
        block = self.block_of(step)
        rows = self._rows(rank, world_size)
        steps = self.block_steps(block)
        return self._blocks[block].windows(step - steps.start, rows)

    def block_windows(self, block: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """What :meth:`batch` gives at each step of ``block``, in a fraction of the time: int64 [K, B/world_size].

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
            SettingsError: as :meth:`batch`.
        """
        rows = self._rows(rank, world_size)
        return self._blocks[block].windows(np.arange(len(self.block_steps(block)))[:, None], rows)

    def fresh_frames(self, step: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Frames that ``batch(step)`` needs and no earlier step of its block does: sorted unique int64.

        Raises:
            IndexError, SettingsError: as :meth:`batch`.
        """
        block = self.block_of(step)
        frames, offsets = self._first_uses[self._rank_key(block, rank, world_size)]
        j = step - self.block_steps(block).start
        return frames[offsets[j] : offsets[j + 1]].copy()

    def block_frames(self, block: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """All frames that the rank's windows of ``block`` hold: sorted unique int64.

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
            SettingsError: as :meth:`batch`.
        """
        return np.sort(self._first_uses[self._rank_key(block, rank, world_size)][0])

    def frames_per_block(self, rank: int = 0, world_size: int = 1) -> int:
        """Most frames a block of this epoch holds for the rank: the slots of a cache that decodes each once a block.

        Exact for up to 4 million frames over all windows. For more, an upper bound, close where few runs of a block
        share a clip: frames that two runs share are counted twice. It takes seconds at 100 million windows, and differs
        a little from epoch to epoch.
        """
        rows = self._rows(rank, world_size)
        if len(self.index) * self.index.window_size <= EXACT_FRAMES:
            share = {"rank": rank, "world_size": world_size}
            return max(len(self.block_frames(block, **share)) for block in range(self.num_blocks))
        if self.run == 1:
            return len(rows) * -(-len(self) // self.num_blocks) * self.index.window_size
        blocks = (self._build_block(block) for block in range(self.num_blocks))
        frames = self._frames_of_run()
        return max(int(frames[block.segment_lengths(rows)].sum()) for block in blocks if isinstance(block, Block))

    def block_of(self, step: int) -> int:
        """The block that ``step`` belongs to.

        Raises:
            IndexError: a ``step`` outside 0..len-1.
        """
        if not 0 <= step < self._num_steps:
            raise IndexError(f"step {step} does not exist; the steps of this epoch run from 0 to {len(self) - 1}")
        return ((operator.index(step) + 1) * self.num_blocks - 1) // self._num_steps

    def block_steps(self, block: int) -> range:
        """The steps of ``block``: all blocks together hold each step once, in order.

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
        """
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} does not exist; the blocks run from 0 to {self.num_blocks - 1}")
        block = operator.index(block)
        return range(block * self._num_steps // self.num_blocks, (block + 1) * self._num_steps // self.num_blocks)

    def state_dict(self, step: int = 0) -> dict[str, int | str]:
        """Where the epoch stands before ``step`` (0..len) and what its order depends on: integers and a string."""
        step = _whole("step", step, 0, len(self) + 1)
        return {"version": STATE_VERSION, "epoch": self.epoch, "step": step, **self._identity()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Do nothing if ``state`` belongs to an order like this one, at any epoch and step.

        Raises:
            SettingsError: naming each difference, in one sentence.
        """
        version = state.get("version")
        require(
            version == STATE_VERSION,
            f"the order's state has version {version}, this program reads version {STATE_VERSION}; "
            "resume with the version of cltt that saved it",
        )
        missing = [key for key in ("epoch", "step", *self._identity()) if key not in state]
        require(not missing, f"the order's state lacks {', '.join(missing)}; it is damaged or not a state of an order")
        differences = [
            f"{_STATE_WORDS.get(key, key)} (saved {_short(state[key])}, now {_short(here)})"
            for key, here in self._identity().items()
            if state[key] != here
        ]
        require(
            not differences,
            f"the order cannot go on from this state, which differs in {', '.join(differences)}: "
            "resume with what it was saved with, or start a new run",
        )
        _whole("epoch", state["epoch"], 0, MAX_SEED)
        _whole("step", state["step"], 0, len(self) + 1)

    def _identity(self) -> dict[str, int | str]:
        """What the order depends on, other than the epoch."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            **{name: getattr(self.index, name) for name in WINDOW_FIELDS},
            "min_gap": self.min_gap,
            "depth": self.depth,
            "run": self.run,
            "data_hash": self.index.data_hash,
        }

    def _resolved_depth(self, depth: int | None) -> int:
        if depth is None:
            depth = max(DEFAULT_DEPTH, -(-self._gap // self.index.window_stride))
        return max(_whole("depth", depth, 1), self._steps_needed)

    def _resolved_run(self, run: int | None) -> int:
        if run is not None:
            return _whole("run", run, 1)
        if self.index.index_distance(self._gap).max() == 1:
            return 1
        return max(1, self.depth // RUNS_PER_DEPTH)

    def _shuffled(self) -> SingleWindows | ShuffledRuns:
        if self.run == 1:
            return SingleWindows(len(self.index), self._seeds(_LAYOUT))
        shift = int(self._seeds(_SHIFT).generate_state(1, np.uint64)[0]) % len(self.index)
        return ShuffledRuns(self.index, self.run, self._seeds(_LAYOUT), shift)

    def _seeds(self, purpose: int, block: int = 0) -> np.random.SeedSequence:
        return seed_sequence(self.seed, self.epoch, purpose, block)

    def _rows(self, rank: int, world_size: int) -> np.ndarray:
        world_size = _whole("world_size", world_size, 1)
        require(
            self.batch_size % world_size == 0,
            f"batch_size {self.batch_size} cannot be shared evenly by {world_size} ranks; take a multiple of that",
        )
        rank = _whole("rank", rank, 0, world_size)
        share = self.batch_size // world_size
        return np.arange(rank * share, (rank + 1) * share)

    def _rank_key(self, block: int, rank: int, world_size: int) -> tuple[int, int, int]:
        """Rank and world size reduced to what matters: the rows they stand for."""
        rows = self._rows(rank, world_size)
        return block, int(rows[0]), len(rows)

    def _build_block(self, block: int) -> Block | FreeBlock:
        steps = self.block_steps(block)
        low, seeds = steps.start * self.batch_size, self._seeds(_BLOCK, block)
        if self._steps_needed == 1 and isinstance(self._layout, SingleWindows):
            return FreeBlock(self._layout, low, len(steps), seeds)
        shape = self.batch_size, len(steps)
        return Block(self.index, self._layout, low, shape, gap=self._gap, needed=self._steps_needed, seeds=seeds)

    def _build_first_use(self, key: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Distinct frames of a rank's block by first step, then id, and where each step's begin: int64, int64 [K+1]."""
        block, first_row, num_rows = key
        steps = np.arange(len(self.block_steps(block)))
        rows = np.arange(first_row, first_row + num_rows)
        ids = self._blocks[block].windows(steps[:, None], rows)  # [K, b]
        frames = self.index.frames(ids).reshape(len(steps), -1)  # [K, b*T]
        # Frame and step in one integer: one sort brings each frame's first step in front.
        uses = np.sort((frames * len(steps) + steps[:, None]).ravel())
        frame, step = np.divmod(uses, len(steps))
        first = np.flatnonzero(np.diff(frame, prepend=-1))
        frame, step = frame[first], step[first]
        order = np.argsort(step, kind="stable")
        return frame[order], np.searchsorted(step[order], np.arange(len(steps) + 1))

    def _frames_of_run(self) -> np.ndarray:
        """Most frames in 0, 1, ... ``run`` consecutive windows of a clip: int64 [run + 1] (or fewer)."""
        index = self.index
        size = index.window_size
        run = min(self.run, int(index.windows_per_clip.max()))
        if index.max_windows_per_clip:
            return np.arange(run + 1) * size
        starts = np.arange(run) * index.window_stride
        frames = starts[:, None] + np.arange(size) * index.frame_step
        first_use = np.unique(frames, return_index=True)[1] // size
        return np.concatenate([[0], np.cumsum(np.bincount(first_use, minlength=run))])

    def _counted_overlaps(self) -> int:
        """0 where the construction rules them out, else counted batch by batch, with a warning if there are any."""
        if self._num_steps // self.num_blocks >= self._steps_needed:
            return 0
        total = sum(self._overlaps_of(self.batch(step)) for step in range(len(self)))
        if total:
            warnings.warn(
                f"{len(self.index)} windows give {len(self)} batches of {self.batch_size}, but keeping windows of a "
                f"clip {self._gap} frames apart within a batch takes {self._steps_needed}: some batches hold windows "
                "that lie closer (EpochPlan.overlaps counts the pairs); take a smaller batch, a larger window_stride, "
                "fewer windows a clip or more clips",
                stacklevel=3,
            )
        return total

    def _overlaps_of(self, windows: np.ndarray) -> int:
        """Pairs of these windows in one clip with starts less than span + min_gap apart."""
        clip, start = self.index.locate(np.sort(windows))
        # Clips on one line, too far apart to disturb each other.
        line = np.cumsum(np.diff(clip, prepend=clip[:1]) != 0) * (self._gap + int(start.max()) + 1) + start
        return int((np.arange(len(line)) - np.searchsorted(line, line - self._gap, side="right")).sum())


K = TypeVar("K")


class _Recent(Generic[K, T]):
    """The last few results of ``build``, shared by threads; each is built once while it is kept."""

    def __init__(self, build: Callable[[K], T], size: int) -> None:
        self._build, self._size = build, size
        self._kept: dict[K, T] = {}
        self._lock = threading.Lock()

    def __getitem__(self, key: K) -> T:
        with self._lock:
            value = self._kept.pop(key) if key in self._kept else self._build(key)
            self._kept[key] = value  # the latest used stand last
            while len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]
            return value


_STATE_WORDS = {"data_hash": "the clips and their lengths"}


def _short(value: Any) -> str:
    """A value as told in a message; of a hash, its beginning."""
    text = str(value)
    return text if len(text) <= 24 else text[:12]


def _whole(name: str, value: int, low: int, stop: int | None = None) -> int:
    """``value`` as an int from ``low`` to ``stop-1``.

    Raises:
        SettingsError: anything else.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number") from None
    allowed = f"{low} or more" if stop is None else f"from {low} to {stop - 1}"
    require(number >= low and (stop is None or number < stop), f"{name} is {number}; it must be {allowed}")
    return number
