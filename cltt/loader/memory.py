"""How many frames the cache may hold: what a block needs against the memory there is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from cltt.loader.control_group import memory_left, ranks_on_node

log = logging.getLogger(__name__)

# Of the memory that is free when a loader starts: on a GPU the model still has to fit, on a CPU other programs.
GPU_SHARE, CPU_SHARE = 0.4, 0.5


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
