"""Collectives of the default process group; without a process group they return the value of this rank alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cltt.distributed.identity import world

if TYPE_CHECKING:
    import torch


def all_gather_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` [n, ...] of all ranks in rank order, [world_size * n, ...]; n equal on all ranks; no gradient."""
    import torch
    import torch.distributed as dist

    size = world().world_size
    if size == 1:
        return x
    x = x.contiguous()
    if x.is_cuda:
        rows = x.new_empty(size * len(x), *x.shape[1:])
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name before torch 2.13
        gather(rows, x)
        return rows
    parts = [torch.empty_like(x) for _ in range(size)]  # gloo only has the form with lists
    dist.all_gather(parts, x)
    return torch.cat(parts)


def all_gather_integers(values: Sequence[int]) -> list[tuple[int, ...]]:
    """The integers of every rank, in rank order; every rank gives the same number of them.

    Gloo carries them where it runs beside nccl, so that no rank waits for its GPU.
    """
    import torch
    import torch.distributed as dist

    if world().world_size == 1:
        return [tuple(values)]
    device = "cpu" if "cpu" in dist.get_backend_config() else "cuda"
    row = torch.tensor([list(values)], dtype=torch.int64, device=device)
    return [tuple(numbers) for numbers in all_gather_rows(row).tolist()]


def all_gather_objects(value: Any) -> list[Any]:
    """The picklable ``value`` of every rank, in rank order."""
    import torch.distributed as dist

    size = world().world_size
    if size == 1:
        return [value]
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, value)
    return parts


def all_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of ``x`` over all ranks, in place; no gradient."""
    import torch.distributed as dist

    if world().world_size > 1:
        dist.all_reduce(x)
    return x
