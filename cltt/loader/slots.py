"""Which frame sits in which slot: the plan tells when each frame is needed next, so nothing has to be guessed.

Legend: K steps in a block; b windows of a rank in a batch; T frames in a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cltt.loader.kept import KeptFrames
from cltt.sampling.epoch_plan import EpochPlan

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class StepUses:
    """What one step needs.

    Attributes:
        window_ids: int64 [b].
        frame_ids: int64 [b, T].
        unique: the step's frames, sorted, int64 [u].
        next_use: the step at which each of them is needed again, int64 [u]; NEVER: not within this block and the next.
    """

    window_ids: np.ndarray
    frame_ids: np.ndarray
    unique: np.ndarray
    next_use: np.ndarray


class BlockUses:
    """Every use of every frame in one block of one rank, from the plan alone."""

    def __init__(self, plan: EpochPlan, block: int, rank: int, world_size: int) -> None:
        self.steps = plan.block_steps(block)
        uses = plan.block_uses(block, rank=rank, world_size=world_size)
        self.windows, self.frames = uses.windows, uses.frames
        frame, local = uses.frame, uses.step
        self.first_in_block = uses.first
        self.block_frames = frame[uses.first]
        self.first_step = local[uses.first] + self.steps.start
        self._next = np.full(len(frame), NEVER)
        again = np.flatnonzero(frame[1:] == frame[:-1])
        self._next[again] = local[again + 1] + self.steps.start
        self._frame = frame
        self._by_step = np.argsort(local, kind="stable")
        self._bounds = np.searchsorted(local[self._by_step], np.arange(len(self.steps) + 1))

    def join(self, following: BlockUses) -> None:
        """Let the last use of a frame in this block know of its first use in the ``following`` one."""
        last = np.append(self.first_in_block[1:], len(self._frame)) - 1
        _, here, there = np.intersect1d(
            self.block_frames, following.block_frames, assume_unique=True, return_indices=True
        )
        self._next[last[here]] = following.first_step[there]

    def step(self, step: int) -> StepUses:
        """The uses of ``step``, which lies in this block."""
        local = step - self.steps.start
        rows = self._by_step[self._bounds[local] : self._bounds[local + 1]]
        return StepUses(self.windows[local], self.frames[local], self._frame[rows], self._next[rows])


def block_uses(plan: EpochPlan, step: int, *, rank: int, world_size: int) -> Iterator[BlockUses]:
    """The uses of each block from that of ``step`` on; each knows of the one that follows it."""
    uses = BlockUses(plan, plan.block_of(step), rank, world_size)
    for block in range(plan.block_of(step) + 1, plan.num_blocks):
        following = BlockUses(plan, block, rank, world_size)
        uses.join(following)
        yield uses
        uses = following
    yield uses


class SlotTable:
    """Frames and the slots that hold them.

    A slot is pinned from the moment a step asks for it until that step is consumed. One thread calls it; ``consumed``
    is always the number of steps consumed so far.

    ``kept``: frame f of these, once it is whole, lies in slot ``slots`` + f and needs no other, so a frame that will be
    kept leaves its slot as soon as its step is consumed.
    """

    def __init__(self, slots: int, kept: KeptFrames | None = None) -> None:
        self._kept = kept
        self._frame = np.full(slots, -1, dtype=np.int64)
        self._pinned_to = np.full(slots, -1, dtype=np.int64)
        self._next_use = np.full(slots, NEVER, dtype=np.int64)
        self._slot_of: dict[int, int] = {}

    def place(self, step: int, uses: StepUses, consumed: int, *, evict: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Give every frame of ``uses`` a slot and pin it to ``step``.

        Takes slots whose frames are not needed again; with ``evict`` also those needed again last of all.

        Returns:
            (slots int64 [u], fresh bool [u]: the frames to be decoded or copied into theirs), or None if there are not
            enough slots yet; then nothing has changed.
        """
        slots = np.array([self._slot_of.get(frame, -1) for frame in uses.unique.tolist()], dtype=np.int64)
        next_use = uses.next_use
        if self._kept is not None:
            whole = self._kept.has(uses.unique)
            slots[whole] = uses.unique[whole] + len(self._frame)
            next_use = np.where(self._kept.keeps(uses.unique), NEVER, next_use)
        fresh, own = slots < 0, slots < len(self._frame)
        taken = self._victims(int(fresh.sum()), slots[~fresh & own], consumed, evict)
        if taken is None:
            return None
        self._replace(taken, uses.unique[fresh])
        slots[fresh] = taken
        self._pinned_to[slots[own]] = step
        self._next_use[slots[own]] = next_use[own]
        return slots, fresh

    def _victims(self, count: int, needed: np.ndarray, consumed: int, evict: bool) -> np.ndarray | None:
        loose = self._pinned_to < consumed
        loose[needed] = False
        free = np.flatnonzero(loose & (self._next_use == NEVER))
        if len(free) >= count or not evict:
            return free[:count] if len(free) >= count else None
        held = np.flatnonzero(loose)
        if len(held) < count:
            return None
        return held[np.argsort(-self._next_use[held], kind="stable")[:count]]

    def _replace(self, slots: np.ndarray, frames: np.ndarray) -> None:
        for frame in self._frame[slots].tolist():
            self._slot_of.pop(frame, None)
        self._frame[slots] = frames
        self._slot_of.update(zip(frames.tolist(), slots.tolist(), strict=True))
