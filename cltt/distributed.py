"""Rank facts, process-group start and stop, and the collectives the other modules need.

Rank facts come from torchrun's variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``) or, under plain ``srun``, from
Slurm's (``SLURM_PROCID``, ``SLURM_NTASKS``, ``SLURM_LOCALID``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from cltt.errors import CLTTError, SettingsError
from cltt.machine.gpus import gpus_given, why_no_cuda

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_SOURCES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class RankFacts:
    """Who this process is: ``0 <= rank < world_size``; ``local_rank`` counts within the node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def rank_facts(environ: Mapping[str, str] | None = None) -> RankFacts:
    """Read the rank facts of this process from the environment; a lone process is rank 0 of 1."""
    environ = os.environ if environ is None else environ
    for names in _SOURCES:
        if all(name in environ for name in names):
            # An interactive `salloc` shell or a batch script has SLURM_NTASKS but is no task: only srun sets STEP_ID.
            if names[0].startswith("SLURM") and "SLURM_STEP_ID" not in environ:
                continue
            rank, world_size, local_rank = (int(environ[name]) for name in names)
            if not 0 <= rank < world_size:
                raise SettingsError(f"{names[0]}={rank} does not lie in 0..{names[1]}-1 = {world_size - 1}")
            return RankFacts(rank, world_size, local_rank)
    return RankFacts()


def pick_device(name: str, facts: RankFacts) -> torch.device:
    """The device of a rank: ``auto`` takes CUDA, else Apple's MPS, else the CPU; on CUDA one GPU a local rank.

    Raises SettingsError if the device asked for is not there, if a node has fewer GPUs than ranks, or if ``auto`` would
    take another device although the process was given GPUs: a job must not train on the CPU in silence.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    given = gpus_given()
    if name == "auto" and given and not there["cuda"]:
        raise SettingsError(
            f"this process was given GPUs ({given}), but {why_no_cuda(torch.__version__, torch.version.cuda)}; "
            "or choose the CPU with --device cpu"
        )
    kind = next(kind for kind in there if there[kind]) if name == "auto" else name
    if not there.get(kind, False):
        found = ", ".join(kind for kind in there if there[kind])
        raise SettingsError(f"device {name} asked for, but torch finds only: {found}; try --device auto")
    if kind == "mps" and facts.world_size > 1:
        raise SettingsError("several ranks cannot share Apple's MPS device; start one process, or use --device cpu")
    if kind != "cuda":
        return torch.device(kind)
    if facts.local_rank >= torch.cuda.device_count():
        raise SettingsError(
            f"local rank {facts.local_rank} has no GPU of its own: torch finds {torch.cuda.device_count()} on this "
            "node; start one process a GPU"
        )
    torch.cuda.set_device(facts.local_rank)
    return torch.device("cuda", facts.local_rank)


def described(device: torch.device, facts: RankFacts) -> str:
    """What a run computes on, to be printed: the device's kind and name, and the number of ranks."""
    import torch

    if device.type == "cuda":
        name = f"cuda ({torch.cuda.get_device_name(device)})"
    elif device.type == "cpu":
        name = f"the CPU (threads of torch: {torch.get_num_threads()})"
    else:
        name = device.type
    return name if facts.world_size == 1 else f"{name}, {facts.world_size} ranks"


def start(facts: RankFacts, device: torch.device, *, timeout_minutes: float = 30) -> None:
    """Start the default process group if there are several ranks: gloo, and nccl beside it for CUDA tensors.

    Needs ``MASTER_ADDR`` and ``MASTER_PORT``. Raises SettingsError if they are missing.
    """
    import torch.distributed as dist

    if facts.world_size == 1 or dist.is_initialized():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(f"{facts.world_size} ranks but {' and '.join(missing)} not set; see slurm/train.sbatch")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        rank=facts.rank,
        world_size=facts.world_size,
        timeout=timedelta(minutes=timeout_minutes),
    )


def stop() -> None:
    """Leave the process group if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world() -> RankFacts:
    """Rank and size of the process group that runs now (rank 0 of 1 without one)."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return RankFacts()
    return RankFacts(dist.get_rank(), dist.get_world_size(), rank_facts().local_rank)


def all_gather_rows(x: torch.Tensor) -> torch.Tensor:
    """Concatenate ``x`` [n, ...] of all ranks in rank order -> [world_size * n, ...]; no gradient; n equal on all."""
    import torch
    import torch.distributed as dist

    size = world().world_size
    if size == 1:
        return x
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(size)]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def all_gather_integers(values: Sequence[int]) -> list[tuple[int, ...]]:
    """The integers of every rank, in rank order; the same number of them on all ranks.

    They go through gloo where it runs beside nccl, so that the device need not be waited for.
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


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable ``value`` on every rank."""
    import torch.distributed as dist

    if world().world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for all ranks."""
    import torch.distributed as dist

    if world().world_size > 1:
        dist.barrier()


def all_max(value: int, device: torch.device) -> torch.Tensor:
    """The largest ``value`` of all ranks, as an int32 scalar tensor on ``device``; nothing waits for the device."""
    import torch
    import torch.distributed as dist

    x = torch.full((), value, dtype=torch.int32, device=device)
    if world().world_size > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def from_main(make: Callable[[], T]) -> T:
    """What ``make`` returns on rank 0 (picklable), on every rank; its CLTTError, too, is raised on every rank."""
    found: Any = None
    if world().is_main:
        try:
            found = make()
        except CLTTError as error:
            found = error
    found = broadcast_object(found)
    if isinstance(found, CLTTError):
        raise found
    return found
