"""How many frames the cache may hold: what a block needs against the memory there is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

from cltt.loader.control_group import memory_left, ranks_on_node
from cltt.sampling.windows import WindowIndex

log = logging.getLogger(__name__)

# Of the memory that is free when a loader starts: on a GPU the model still has to fit, on a CPU other programs.
GPU_SHARE, CPU_SHARE = 0.4, 0.5
# frames_used is exact up to this many frames over all windows, else estimated from as many, in so many pieces.
EXACT_FRAMES, PIECES = 4_000_000, 64
KEEP_SHARE, KEEP_AND_CACHE_SHARE = 0.5, 0.75  # of a node's


def slots_for(needed: int, block: int, least: int, slot_bytes: int, limit: int | None, device: torch.device) -> int:
    """How many slots a loader takes; warns if a block does not fit.

    Args:
        needed: slots that can be of use (two blocks).
        block: frames of the largest block.
        least: slots without which no batch can be made.
        slot_bytes: bytes of a slot.
        limit: bytes allowed; None: a share of what is free on ``device``.
    """
    allowed = free_share(device) if limit is None else limit
    slots = max(min(needed, allowed // slot_bytes), min(least, needed))
    if slots < block:
        log.warning(
            "%.2f GB of frame memory hold %d of the %d frames of a block, so some frames will be decoded again; "
            "%.2f GB (cache_bytes=%d) would hold a block, %.2f GB two",
            slots * slot_bytes / 1e9,
            slots,
            block,
            block * slot_bytes / 1e9,
            block * slot_bytes,
            needed * slot_bytes / 1e9,
        )
    return slots


def keep_limit(cache_bytes: int, held_bytes: int) -> int:
    """Bytes that the kept frames of a node may take by default.

    Half of what is free, and no more than leaves a quarter beside the frame memory of the node's ranks.

    Args:
        cache_bytes: of the frame memory of a rank in main memory.
        held_bytes: what kept frames take already.
    """
    free = free_memory() + held_bytes
    cache_bytes = min(cache_bytes, free_share(torch.device("cpu")))
    return max(0, int(min(free * KEEP_SHARE, free * KEEP_AND_CACHE_SHARE - ranks_on_node() * cache_bytes)))


def frames_used(index: WindowIndex) -> int:
    """How many distinct frames the windows of ``index`` have in all, or about so many where there are very many."""
    clips = index.clip_lengths[index.clips][index.windows_per_clip > 0]
    most = min(int(clips.sum()), len(index) * index.window_size)
    if index.frame_steps[0] != index.frame_steps[1]:
        return most
    if len(index) * index.window_size <= EXACT_FRAMES:
        return len(np.unique(index.places(np.arange(len(index)))))
    piece = EXACT_FRAMES // index.window_size // PIECES
    starts = np.linspace(0, len(index) - piece, PIECES).astype(np.int64)
    found = sum(len(np.unique(index.places(np.arange(start, start + piece)))) for start in starts.tolist())
    return min(most, found * len(index) // (piece * PIECES))


def free_share(device: torch.device) -> int:
    """Bytes that one loader may take by default of what is free now; ranks of a node share its memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE)
    return int(free_memory() * CPU_SHARE / ranks_on_node())


def free_memory() -> int:
    """Bytes of main memory this process may still take: what is available, or what its control group leaves."""
    left = memory_left()
    return max(0, _available() if left is None else min(left, _available()))


def _available() -> int:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
