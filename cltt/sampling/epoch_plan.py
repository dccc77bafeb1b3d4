"""The order of an epoch: window ids of any step, from (seed, epoch, step) alone.

The order is the same for any number of ranks. An epoch takes windows run by run; the windows of a run share frames.
About ``depth`` steps form a block and share its runs, so a loader decodes each frame once per block. Within a block,
windows are assigned to steps so that no batch holds two windows of one clip that overlap in time, if the epoch has
enough steps (``EpochPlan.overlaps``). docs/order.md explains it with a picture.

Legend: N windows; B windows per batch over all ranks; b = B/world_size; S = N//B steps; K steps per block.
"""

from __future__ import annotations

import operator
import warnings
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from cltt.config import require
from cltt.sampling.blocks import Block, Chains, FreeBlock, Spacing, max_conflicts_bound, starts_on_one_axis
from cltt.sampling.epoch_windows import EpochWindows
from cltt.sampling.order_state import STATE_VERSION, require_int, require_same
from cltt.sampling.permutation import BLOCK, GROUPS, MAX_SEED, RUNS, SHIFT, seed_sequence
from cltt.sampling.runs import ClipGroups, ShuffledRuns, SingleWindows
from cltt.sampling.uses import FrameUses
from cltt.sampling.windows import WINDOW_FIELDS, WindowIndex
from cltt.text import counted

DEFAULT_DEPTH = 128
# A run of n windows that share T-1 frames costs (T + n - 1)/n decodes per window: 1.2 for n = 5*(T-1). Runs of more
# than 32 windows leave too few runs per block to mix.
WINDOWS_PER_SHARED_FRAME, MOST_WINDOWS_PER_RUN = 5, 32
WINDOWS_PER_RUN_OF_DRAWN_STEPS = 20  # where frame_step is a range: windows share frames only by chance
# frames_per_block is exact while windows * window_size is at most EXACT_FRAMES. Above, unless ``run`` is 1, it is
# estimated from SAMPLED_BLOCKS blocks.
EXACT_FRAMES, SAMPLED_BLOCKS = 4_000_000, 64


class EpochPlan(EpochWindows):
    """The windows of each step of one epoch, with random access to any step.

    It keeps a table of runs (none where each run is one window and ``clips_per_block`` is 0), the last two blocks and
    the last four results of ``block_uses``.

    Args:
        index: the windows.
        batch_size: B, windows per step over all ranks.
        seed, epoch: integers from 0 to 2**64-1; each pair gives another order.
        min_gap: minimum number of frames between two windows of one clip in a batch; 0: one may begin with the frame
            after the other's last.
        depth: fewest steps of a block; None: 128. An epoch is cut into blocks of nearly equal length, of fewer than
            2 * depth steps; longer where keeping windows apart needs it, one block if the epoch is shorter. A larger
            depth saves decoding and costs frame memory.
        run: most windows of a run; None: 5*(T-1), at most 32, and 20 where frame_step is a range. Where no windows
            share frames it is 1, whatever is given.
        clips_per_block: C > 0: clips are divided at random into groups of at most C in each epoch, and a block takes
            its windows from at most two groups, so batches hold more windows of fewer clips. For that, blocks may be
            shorter than ``depth``. A block holds more than 2C clips only where a single batch does already, or where
            keeping windows apart needs longer blocks. 0: windows of a block come from all clips.

    Attributes:
        index, batch_size, seed, epoch, min_gap, depth, run, clips_per_block: as given, or what None stands for.
        num_blocks: blocks in the epoch.
        overlaps: number of pairs of windows of one clip in one batch, over all batches, whose starts are less than
            span + min_gap frames apart. It is 0 if the epoch has at least ``index.steps_needed(span + min_gap)`` steps.

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
        clips_per_block: int = 0,
    ) -> None:
        super().__init__(index, seed=seed, epoch=epoch)
        self.batch_size = require_int("batch_size", batch_size, 1)
        self.min_gap = require_int("min_gap", min_gap, 0)
        require(
            self.batch_size <= len(index),
            f"batch_size is {batch_size}, but there are only {counted(len(index), 'window')}{_too_short(index)}; take "
            f"a batch_size of at most {len(index)}",
        )
        self.depth = DEFAULT_DEPTH if depth is None else require_int("depth", depth, 1)
        self.run = self._windows_per_run(run)
        self.clips_per_block = require_int("clips_per_block", clips_per_block, 0)
        self._gap = index.span + self.min_gap
        self._steps_needed = index.steps_needed(self._gap)
        self._num_steps = len(index) // self.batch_size
        self._clip_groups = ClipGroups(index, self.clips_per_block, self._seeds(GROUPS)) if clips_per_block else None
        self._sequence = self._shuffled_sequence()
        self._choose_num_blocks()
        self._block = lru_cache(2)(self._build_block)
        self._uses = lru_cache(4)(self._build_uses)
        self.overlaps = self._counted_overlaps()

    def at_epoch(self, epoch: int) -> EpochPlan:
        """The plan of another epoch, with the same settings."""
        return EpochPlan(self.index, self.batch_size, seed=self.seed, epoch=epoch, **self._settings())

    def __len__(self) -> int:
        return self._num_steps

    def __repr__(self) -> str:
        return (
            f"EpochPlan({len(self)} steps of {self.batch_size} windows in {self.num_blocks} blocks, seed={self.seed}, "
            f"epoch={self.epoch}, min_gap={self.min_gap}, depth={self.depth}, run={self.run})"
        )

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Window ids of rows ``rank*b`` to ``(rank+1)*b-1`` at ``step``: int64 [B/world_size].

        Raises:
            IndexError: a ``step`` outside 0..len-1.
            SettingsError: (a ValueError) ``world_size`` does not divide B, or ``rank`` is outside 0..world_size-1.
        """
        block = self.block_of(step)
        rows = self._rows(rank, world_size)
        steps = self.block_steps(block)
        return self._block(block).windows(step - steps.start, rows)

    def block_windows(self, block: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The batches of all steps of ``block``, faster than step by step: int64 [K, B/world_size].

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
            SettingsError: as :meth:`batch`.
        """
        rows = self._rows(rank, world_size)
        return self._block(operator.index(block)).windows(np.arange(len(self.block_steps(block)))[:, None], rows)

    def block_uses(self, block: int, *, rank: int = 0, world_size: int = 1) -> FrameUses:
        """The rank's windows of ``block``, their frames and the steps that use them.

        The arrays are shared with later calls: do not write to them.

        Raises:
            IndexError, SettingsError: as :meth:`block_windows`.
        """
        rows = self._rows(rank, world_size)
        return self._uses(operator.index(block), int(rows[0]), len(rows))

    def fresh_frames(self, step: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Frames of ``batch(step)`` that no earlier step of its block uses: sorted unique int64.

        Raises:
            IndexError, SettingsError: as :meth:`batch`.
        """
        block = self.block_of(step)
        uses = self.block_uses(block, rank=rank, world_size=world_size)
        fresh = uses.first[uses.step[uses.first] == step - self.block_steps(block).start]
        return uses.frame[fresh]

    def block_frames(self, block: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """All frames of the rank's windows in ``block``: sorted unique int64.

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
            SettingsError: as :meth:`batch`.
        """
        uses = self.block_uses(block, rank=rank, world_size=world_size)
        return uses.frame[uses.first]

    def frames_per_block(self, rank: int = 0, world_size: int = 1) -> int:
        """The largest number of distinct frames of the rank in any block.

        With frame memory for this many frames, each frame is decoded once per block. The loader asks for at most twice
        as many: for the block in use, and for the next one, which is decoded meanwhile. The number is exact if windows
        * window_size is at most 4 million. For more it is an upper bound if ``run`` is 1 (as if no frame were shared),
        and otherwise an estimate: the most in 64 blocks spread over the epoch, plus 1/64.
        """
        rows = self._rows(rank, world_size)
        exact = len(self.index) * self.index.window_size <= EXACT_FRAMES
        if not exact and self.run == 1:
            return (
                len(rows) * -(-len(self) // self.num_blocks) * (self.index.window_size if self.index.frame_step else 1)
            )
        sampled = range(self.num_blocks) if exact else self._sampled_blocks()
        most = max(len(self.block_frames(block, rank=rank, world_size=world_size)) for block in sampled)
        return most if exact else most + most // 64

    def block_of(self, step: int) -> int:
        """The block that ``step`` belongs to.

        Raises:
            IndexError: a ``step`` outside 0..len-1.
        """
        if not 0 <= step < self._num_steps:
            raise IndexError(f"step {step} does not exist; the steps of this epoch run from 0 to {len(self) - 1}")
        return ((operator.index(step) + 1) * self.num_blocks - 1) // self._num_steps

    def block_steps(self, block: int) -> range:
        """The steps of ``block``; blocks divide the epoch's steps in order, as equally as possible.

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
        """
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} does not exist; the blocks run from 0 to {self.num_blocks - 1}")
        block = operator.index(block)
        return range(block * self._num_steps // self.num_blocks, (block + 1) * self._num_steps // self.num_blocks)

    def state_dict(self, step: int = 0) -> dict[str, int | str | None]:
        """State before ``step`` (0..len): epoch, step and all that the order depends on."""
        step = require_int("step", step, 0, len(self) + 1)
        return {"version": STATE_VERSION, "epoch": self.epoch, "step": step, **self._identity()}

    def check_state(self, state: dict[str, Any]) -> None:
        """Check that ``state`` belongs to this order, at any epoch and step.

        Raises:
            SettingsError: it does not; the message names all differences.
        """
        require_same(state, self._identity())
        require_int("epoch", state["epoch"], 0, MAX_SEED)
        require_int("step", state["step"], 0, len(self) + 1)

    def _identity(self) -> dict[str, int | str | None]:
        """All that the order depends on, except the epoch."""
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            **{name: getattr(self.index, name) for name in WINDOW_FIELDS},
            "shuffle_seed": self.index.shuffle_seed,
            **self._settings(),
            "data_hash": self.index.data_hash,
        }

    def _settings(self) -> dict[str, int]:
        return {"min_gap": self.min_gap, "depth": self.depth, "run": self.run, "clips_per_block": self.clips_per_block}

    # ---- the order ---------------------------------------------------------------------------------------------------
    def _windows_per_run(self, run: int | None) -> int:
        default = min(WINDOWS_PER_SHARED_FRAME * (self.index.window_size - 1), MOST_WINDOWS_PER_RUN)
        if self.index.frame_steps[0] < self.index.frame_steps[1]:
            default = WINDOWS_PER_RUN_OF_DRAWN_STEPS
        asked = default if run is None else require_int("run", run, 1)
        return asked if self.index.sharing_distance.any() else 1

    def _shuffled_sequence(self) -> SingleWindows | ShuffledRuns:
        """All windows in the order that blocks take them."""
        if self.run == 1 and self._clip_groups is None:  # needs no table
            return SingleWindows(len(self.index), self._seeds(RUNS))
        groups = self._clip_groups.of_clip if self._clip_groups else None
        return ShuffledRuns(self.index, self.run, self._seeds(RUNS), self._seeds(SHIFT), groups)

    def _seeds(self, purpose: int, block: int = 0) -> np.random.SeedSequence:
        return seed_sequence(self.seed, self.epoch, purpose, block)

    def _choose_num_blocks(self) -> None:
        """Set ``num_blocks``, the number of blocks of the epoch.

        It begins with blocks of ``depth`` steps. Their number is doubled until each takes windows from at most two clip
        groups, then halved until all blocks fit: none has a ``max_conflicts`` larger than its number of steps. Blocks
        of at least steps_needed steps always fit, so the halving stops at the latest with blocks of
        max(depth, steps_needed) steps, or with one block.
        """
        self.num_blocks = max(1, len(self) // self.depth)
        while self._clip_groups and self.num_blocks < len(self) and not self._hold_two_groups(self._clip_groups):
            self.num_blocks = min(2 * self.num_blocks, len(self))
        fewest = max(1, len(self) // max(self.depth, self._steps_needed))
        while self.num_blocks > fewest and not self._all_fit():
            self.num_blocks = max(fewest, self.num_blocks // 2)

    def _hold_two_groups(self, groups: ClipGroups) -> bool:
        """Whether no block holds windows of more than two clip groups."""
        assert isinstance(self._sequence, ShuffledRuns)
        bounds = np.arange(self.num_blocks + 1) * self._num_steps // self.num_blocks * self.batch_size
        return groups.most_between(bounds, self._sequence.begin) <= 2

    def _all_fit(self) -> bool:
        steps = len(self) // self.num_blocks
        return steps >= self._steps_needed or all(self._fits(block, steps) for block in range(self.num_blocks))

    def _fits(self, block: int, steps: int) -> bool:
        """Whether ``max_conflicts`` of the block is at most ``steps``."""
        segments = self._sequence.segments(*self._positions(block))
        if max_conflicts_bound(self.index, segments, self._spacing) <= steps:  # cheap, and often decides
            return True
        return Chains(self.index, segments, self._spacing).max_conflicts <= steps

    @property
    def _spacing(self) -> Spacing:
        groups = len(self._clip_groups) if self._clip_groups else 1
        return Spacing(self._gap, self._max_conflicts_per_run, max(1, self.num_blocks // groups))

    @cached_property
    def _max_conflicts_per_run(self) -> int:
        """The most windows of one run that start within span + min_gap frames."""
        sharing = self.index.sharing_distance
        most = np.where(sharing > 0, -(-self.index.index_distance(self._gap) // np.maximum(sharing, 1)), 1).max()
        return min(int(most), self.run)

    def _positions(self, block: int) -> tuple[int, int]:
        """(low, high): ``block`` holds positions ``low`` to ``high-1`` of the sequence."""
        steps = self.block_steps(block)
        return steps.start * self.batch_size, steps.stop * self.batch_size

    def _build_block(self, block: int) -> Block | FreeBlock:
        low, high = self._positions(block)
        steps, seeds = len(self.block_steps(block)), self._seeds(BLOCK, block)
        if self._steps_needed == 1 and isinstance(self._sequence, SingleWindows):
            return FreeBlock(self._sequence, low, steps, seeds)
        segments = self._sequence.segments(low, high)
        return Block(self.index, segments, (self.batch_size, steps), self._spacing, seeds)

    # ---- ranks and frames --------------------------------------------------------------------------------------------
    def _rows(self, rank: int, world_size: int) -> np.ndarray:
        world_size = require_int("world_size", world_size, 1)
        require(
            self.batch_size % world_size == 0,
            f"batch_size {self.batch_size} cannot be shared evenly by {world_size} ranks; "
            f"take a multiple of {world_size}",
        )
        rank = require_int("rank", rank, 0, world_size)
        share = self.batch_size // world_size
        return np.arange(rank * share, (rank + 1) * share)

    def _build_uses(self, block: int, first_row: int, num_rows: int) -> FrameUses:
        steps, rows = np.arange(len(self.block_steps(block))), np.arange(first_row, first_row + num_rows)
        windows = self._block(block).windows(steps[:, None], rows)
        return FrameUses(windows, self.frames(windows))

    def _sampled_blocks(self) -> list[int]:
        return np.unique(np.linspace(0, self.num_blocks - 1, SAMPLED_BLOCKS).astype(int)).tolist()

    def _counted_overlaps(self) -> int:
        """The value of ``overlaps``, with a warning if it is not 0."""
        # A block that fits holds no overlaps. If there are several blocks, all fit (_choose_num_blocks).
        if len(self) // self.num_blocks >= self._steps_needed or self._fits(0, len(self)):
            return 0
        total = sum(self._overlaps_of(self.batch(step)) for step in range(len(self)))
        if total:
            warnings.warn(
                f"some batches hold windows of one clip that begin less than {self._gap} frames apart (span + "
                f"min_gap); where these overlap, frames of one moment are negatives unless the loss masks them ("
                f"{counted(total, 'pair')}; EpochPlan.overlaps): "
                f"{counted(len(self.index), 'window')} make {counted(len(self), 'batch', 'batches')} of "
                f"{self.batch_size}, and keeping the windows of a clip apart takes {self._steps_needed}. Take a "
                "smaller batch_size; or a smaller frame_step, a larger window_stride, fewer windows per clip, or "
                "more clips",
                stacklevel=3,
            )
        return total

    def _overlaps_of(self, windows: np.ndarray) -> int:
        """Pairs of these windows in one clip with starts less than span + min_gap apart."""
        starts = starts_on_one_axis(self.index, np.sort(windows), self._gap)
        return int((np.arange(len(starts)) - np.searchsorted(starts, starts - self._gap, side="right")).sum())


def _too_short(index: WindowIndex) -> str:
    """The end of a clause on how many clips give no window; "" if there are none."""
    short = int((index.windows_per_clip == 0).sum())
    if not short:
        return ""
    clips = f"{short:,} of {counted(len(index.clips), 'clip')}"
    return f", as {clips} are shorter than the {index.span} frames of a window (fewer are with a smaller frame_step)"
