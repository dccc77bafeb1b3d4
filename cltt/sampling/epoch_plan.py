"""The order of an epoch: (seed, epoch, step) -> window ids, the same for any number of ranks, from any step.

Windows are drawn in runs that share frames, and `depth` steps share one pool (a block) of runs, so that a frame is
decoded once for all the windows of the block that hold it; within the block the windows are dealt out so that no batch
holds two windows of a clip that share, or nearly share, frames. docs/order.md tells it with pictures.

Legend: N windows, B windows a batch over all ranks, b = B/world_size; S = N//B steps; block k holds K_k steps.
"""

from __future__ import annotations

import operator
import warnings
from functools import cached_property
from typing import Any

import numpy as np

from cltt.config import require
from cltt.sampling.blocks import Block, Chains, FreeBlock, Spacing, crowd_bound, on_one_line
from cltt.sampling.order_state import OrderState, whole
from cltt.sampling.permutation import BLOCK, MAX_SEED, RUNS, SHIFT, seed_sequence
from cltt.sampling.recent import Recent
from cltt.sampling.runs import ShuffledRuns, SingleWindows
from cltt.sampling.uses import FrameUses
from cltt.sampling.windows import WindowIndex

DEFAULT_DEPTH = 128
# A run costs (T + run - 1)/run decodes a window where neighbours share T-1 frames: 1.2 with this many windows for each
# shared frame. Longer ones than 32 leave a block too few runs to mix.
RUN_FOR_EACH_SHARED_FRAME, LONGEST_RUN = 5, 32
# Frames an exact frames_per_block may go through, and blocks that are looked at where there are more.
EXACT_FRAMES, SAMPLED_BLOCKS = 4_000_000, 64


class EpochPlan:
    """Which windows each step of one epoch takes; random access, nothing kept but a table of runs and recent blocks.

    Args:
        index: the windows.
        batch_size: B, windows a step over all ranks.
        seed, epoch: whole numbers from 0 to 2**64-1; every pair gives an order of its own.
        min_gap: frames to leave between two windows of a clip in one batch, beyond not overlapping.
        depth: steps that share a block of windows; None: 128. Where keeping windows apart takes more, blocks are
            longer. More depth saves decoding and costs frame memory.
        run: windows of a clip drawn together; None: 5*(T-1), at most 32. 1 where no windows share frames.

    Attributes:
        index, batch_size, seed, epoch, min_gap, depth, run: as given or resolved.
        num_blocks: blocks of ``depth`` steps or more in the epoch.
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
        self.batch_size = whole("batch_size", batch_size, 1)
        self.seed = whole("seed", seed, 0, MAX_SEED)
        self.epoch = whole("epoch", epoch, 0, MAX_SEED)
        self.min_gap = whole("min_gap", min_gap, 0)
        require(
            self.batch_size <= len(index),
            f"batch_size is {batch_size}, but there are only {len(index)} windows; take a batch_size of at most that",
        )
        self.depth = DEFAULT_DEPTH if depth is None else whole("depth", depth, 1)
        self.run = self._resolved_run(run)
        self._gap = index.span + self.min_gap
        self._steps_needed = index.steps_needed(self._gap)
        self._num_steps = len(index) // self.batch_size
        self._layout = self._shuffled()
        self.num_blocks = self._most_blocks()
        self._blocks = Recent(self._build_block, 2)
        self._uses = Recent(self._build_first_uses, 4)
        self.overlaps = self._counted_overlaps()

    def at_epoch(self, epoch: int) -> EpochPlan:
        """The order of another epoch of the same run."""
        return EpochPlan(
            self.index,
            self.batch_size,
            seed=self.seed,
            epoch=epoch,
            min_gap=self.min_gap,
            depth=self.depth,
            run=self.run,
        )

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
        frames, steps = self._uses[self._rank_key(block, rank, world_size)]
        return frames[steps == step - self.block_steps(block).start]

    def block_frames(self, block: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """All frames that the rank's windows of ``block`` hold: sorted unique int64.

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
            SettingsError: as :meth:`batch`.
        """
        return self._uses[self._rank_key(block, rank, world_size)][0].copy()

    def frames_per_block(self, rank: int = 0, world_size: int = 1) -> int:
        """Most frames a block of this epoch holds for the rank: the slots of a cache that decodes each once a block.

        Exact for up to 4 million frames over all windows. For more, the most in 64 blocks spread over the epoch, and a
        64th more: blocks are alike, as runs are shuffled over all of them.
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
        """The steps of ``block``: all blocks together hold each step once, in order.

        Raises:
            IndexError: a ``block`` outside 0..num_blocks-1.
        """
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} does not exist; the blocks run from 0 to {self.num_blocks - 1}")
        block = operator.index(block)
        return range(block * self._num_steps // self.num_blocks, (block + 1) * self._num_steps // self.num_blocks)

    def state_dict(self, step: int = 0) -> dict[str, int | str | None]:
        """Where the epoch stands before ``step`` (0..len) and what its order depends on: integers and a string."""
        return self._state.saved(self.epoch, whole("step", step, 0, len(self) + 1))

    def check_state(self, state: dict[str, Any]) -> None:
        """Do nothing if ``state`` belongs to an order like this one, at any epoch and step.

        Raises:
            SettingsError: naming each difference, in one sentence.
        """
        self._state.check(state)
        whole("epoch", state["epoch"], 0, MAX_SEED)
        whole("step", state["step"], 0, len(self) + 1)

    @property
    def _state(self) -> OrderState:
        return OrderState(self.index, self.seed, self.batch_size, self.min_gap, self.depth, self.run)

    # ---- the order ---------------------------------------------------------------------------------------------------
    def _resolved_run(self, run: int | None) -> int:
        default = min(RUN_FOR_EACH_SHARED_FRAME * (self.index.window_size - 1), LONGEST_RUN)
        asked = default if run is None else whole("run", run, 1)
        return asked if self.index.sharing_distance.any() else 1

    def _shuffled(self) -> SingleWindows | ShuffledRuns:
        if self.run == 1:
            return SingleWindows(len(self.index), self._seeds(RUNS))
        return ShuffledRuns(self.index, self.run, self._seeds(RUNS), self._seeds(SHIFT))

    def _seeds(self, purpose: int, block: int = 0) -> np.random.SeedSequence:
        return seed_sequence(self.seed, self.epoch, purpose, block)

    def _most_blocks(self) -> int:
        """Blocks of ``depth`` steps, or as many halvings fewer as it takes for the crowd of each to fit its steps.

        Never fewer than with blocks of ``steps_needed`` steps: that is the crowd of a block that holds a whole clip.
        """
        self.num_blocks = max(1, len(self) // self.depth)
        fewest = max(1, len(self) // max(self.depth, self._steps_needed))
        while self.num_blocks > fewest and not self._all_fit():
            self.num_blocks = max(fewest, self.num_blocks // 2)
        return self.num_blocks

    def _all_fit(self) -> bool:
        """Whether no block has a larger crowd than steps."""
        steps = len(self) // self.num_blocks
        return steps >= self._steps_needed or all(self._fits(block, steps) for block in range(self.num_blocks))

    def _fits(self, block: int, steps: int) -> bool:
        segments = self._layout.segments(*self._positions(block))
        if crowd_bound(self.index, segments, self._spacing) <= steps:
            return True
        return Chains(self.index, segments, self._spacing).crowd <= steps

    @property
    def _spacing(self) -> Spacing:
        return Spacing(self._gap, self._run_crowd, self.num_blocks)

    @cached_property
    def _run_crowd(self) -> int:
        sharing = self.index.sharing_distance
        return int(np.where(sharing > 0, -(-self.index.index_distance(self._gap) // np.maximum(sharing, 1)), 1).max())

    def _positions(self, block: int) -> tuple[int, int]:
        steps = self.block_steps(block)
        return steps.start * self.batch_size, steps.stop * self.batch_size

    def _build_block(self, block: int) -> Block | FreeBlock:
        low, high = self._positions(block)
        steps, seeds = len(self.block_steps(block)), self._seeds(BLOCK, block)
        if self._steps_needed == 1 and isinstance(self._layout, SingleWindows):
            return FreeBlock(self._layout, low, steps, seeds)
        segments = self._layout.segments(low, high)
        return Block(self.index, segments, (self.batch_size, steps), self._spacing, seeds)

    # ---- ranks and frames --------------------------------------------------------------------------------------------
    def _rows(self, rank: int, world_size: int) -> np.ndarray:
        world_size = whole("world_size", world_size, 1)
        require(
            self.batch_size % world_size == 0,
            f"batch_size {self.batch_size} cannot be shared evenly by {world_size} ranks; take a multiple of that",
        )
        rank = whole("rank", rank, 0, world_size)
        share = self.batch_size // world_size
        return np.arange(rank * share, (rank + 1) * share)

    def _rank_key(self, block: int, rank: int, world_size: int) -> tuple[int, int, int]:
        """Rank and world size reduced to what matters: the rows they stand for."""
        rows = self._rows(rank, world_size)
        return block, int(rows[0]), len(rows)

    def _build_first_uses(self, key: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Distinct frames of a rank's block, sorted, and the step of each that needs it first: int64, int64."""
        block, first_row, num_rows = key
        steps, rows = np.arange(len(self.block_steps(block))), np.arange(first_row, first_row + num_rows)
        ids = self._blocks[block].windows(steps[:, None], rows)  # [K, b]
        uses = FrameUses(self.index.frames(ids).reshape(len(steps), -1))
        return uses.frame[uses.first], uses.step[uses.first]

    def _sampled_blocks(self) -> list[int]:
        return np.unique(np.linspace(0, self.num_blocks - 1, SAMPLED_BLOCKS).astype(int)).tolist()

    def _counted_overlaps(self) -> int:
        """0 where the construction rules them out, else counted batch by batch, with a warning if there are any."""
        if len(self) // self.num_blocks >= self._steps_needed or self._fits(0, len(self)):
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
        line = on_one_line(self.index, np.sort(windows), self._gap)
        return int((np.arange(len(line)) - np.searchsorted(line, line - self._gap, side="right")).sum())
