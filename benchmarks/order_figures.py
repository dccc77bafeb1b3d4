"""What an order costs and how well it mixes: the figures of ``benchmarks.order``, also held by the tests.

Mixing is told three ways: how many windows of a batch overlap in time with one of the batch before; how often far
windows of one clip meet, against a uniform shuffle; and the chance that a clip is seen again some batches later.
"""

from __future__ import annotations

import numpy as np

from cltt import EpochPlan, WindowIndex

SLOT_BYTES = 224 * 224 * 3
BLOCKS_HELD = 2  # by a loader: the one in use and the next


def clip_lengths(num_clips: int) -> np.ndarray:
    """Clips as long as infants' recordings, 4,500 to 13,500 frames; 2,000 of them are shorter, 1,000 to 3,000."""
    low, high = (4_500, 13_500) if num_clips < 2000 else (1_000, 3_000)
    return np.random.default_rng(num_clips).integers(low, high + 1, num_clips)


def all_batches(plan: EpochPlan) -> np.ndarray:
    """The windows of every step [S, B]."""
    return np.concatenate([plan.block_windows(block) for block in range(plan.num_blocks)])


def decodes_a_window(plan: EpochPlan) -> float:
    """Frames of the largest block over the windows of one: what a cache that holds a block decodes."""
    return plan.frames_per_block() / (plan.batch_size * len(plan) / plan.num_blocks)


def mean_decodes_a_window(plan: EpochPlan, samples: int = 64) -> float:
    """Frames over windows of up to ``samples`` blocks: what a cache that holds a block decodes on average."""
    blocks = np.unique(np.linspace(0, plan.num_blocks - 1, samples).astype(int)).tolist()
    windows = plan.batch_size * sum(len(plan.block_steps(block)) for block in blocks)
    return sum(len(plan.block_frames(block)) for block in blocks) / windows


def most_clips_in_a_block(plan: EpochPlan) -> int:
    """The most clips that a block takes windows from."""
    blocks = (plan.index.locate(plan.block_windows(block))[0] for block in range(plan.num_blocks))
    return max(len(np.unique(clips)) for clips in blocks)


def gigabytes(plan: EpochPlan) -> float:
    """Two blocks of frames of 224 x 224 x 3 bytes."""
    return BLOCKS_HELD * plan.frames_per_block() * SLOT_BYTES / 1e9


def far_pairs_rate(plan: EpochPlan, batches: np.ndarray | None = None) -> float:
    """How often windows of one clip that may share a batch do, as a multiple of a uniform shuffle's rate.

    Where every window counts (no ``max_windows_per_clip``); ``batches`` [S, B], if made already.
    """
    batches = all_batches(plan) if batches is None else batches
    index, gap = plan.index, plan.index.span + plan.min_gap
    clip, start = index.locate(np.sort(batches, axis=1))  # by clip, then by start
    met = 0
    for apart in range(1, batches.shape[1]):
        same = clip[:, apart:] == clip[:, :-apart]
        if not same.any():
            break
        met += int((same & (start[:, apart:] - start[:, :-apart] >= gap)).sum())
    beyond = np.maximum(index.windows_per_clip + gap // -index.window_stride, 0)
    pairs = int((beyond * (beyond + 1) // 2).sum())
    # A pair of all windows shares a batch with probability (B-1)/(N-1), if neither is left out.
    uniform = pairs * (plan.batch_size - 1) / (len(index) - 1) * batches.size / len(index)
    return met / uniform if uniform else float("nan")


def met_again(plan: EpochPlan) -> float:
    """How often pairs of one clip that shared a batch share one again in the next epoch, as a multiple of chance.

    NaN where fewer than 20 would do so by chance.
    """
    now, following = all_batches(plan), all_batches(plan.at_epoch(plan.epoch + 1))
    step = np.full(len(plan.index), -1)
    step[following] = np.arange(len(following))[:, None]
    now = np.sort(now, axis=1)  # by clip
    clip, later = plan.index.locate(now)[0], step[now]
    pairs = again = 0
    for apart in range(1, now.shape[1]):
        same = clip[:, apart:] == clip[:, :-apart]
        if not same.any():
            break
        pairs += int(same.sum())
        again += int((same & (later[:, apart:] == later[:, :-apart]) & (later[:, apart:] >= 0)).sum())
    by_chance = pairs / len(now)
    return again / by_chance if by_chance >= 20 else float("nan")


def overlap_with_batch_before(index: WindowIndex, batches: np.ndarray, samples: int = 400) -> float:
    """Share of a batch's windows that overlap in time with one of the batch before, over up to ``samples`` batches."""
    steps = np.unique(np.linspace(1, len(batches) - 1, samples).astype(int)).tolist()
    return float(np.mean([_overlapping(index, batches[step], batches[step - 1]) for step in steps]))


def _overlapping(index: WindowIndex, now: np.ndarray, before: np.ndarray) -> float:
    clips_apart = int(index.clip_lengths.max()) + index.span
    line, earlier = (clip * clips_apart + start for clip, start in map(index.locate, (now, before)))
    earlier = np.sort(earlier)
    first = np.searchsorted(earlier, line - index.span, side="right")
    return float((np.searchsorted(earlier, line + index.span, side="left") > first).mean())


def same_clip_pairs(clips: np.ndarray) -> float:
    """Share of the row pairs of a batch that come from one clip; ``clips`` [S, B]."""
    ordered = np.sort(clips, axis=1)
    row, place = np.nonzero(np.diff(ordered, axis=1, prepend=-1))
    sizes = np.diff(row * clips.shape[1] + place, append=clips.size)
    return float((sizes * (sizes - 1)).sum() / (len(clips) * clips.shape[1] * (clips.shape[1] - 1)))


def seen_again(clips: np.ndarray, lag: int, samples: int = 500) -> float:
    """Chance that a clip of batch k is in batch k + lag, over up to ``samples`` batches k."""
    steps = np.linspace(0, len(clips) - lag - 1, samples).astype(int)
    return float(np.mean([np.isin(np.unique(clips[k]), clips[k + lag]).mean() for k in steps]))
