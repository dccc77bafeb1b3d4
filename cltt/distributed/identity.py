"""Who this process is among the ranks, and which device it takes.

From torchrun's variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``) or, under plain ``srun``, from Slurm's
(``SLURM_PROCID``, ``SLURM_NTASKS``, ``SLURM_LOCALID``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cltt.errors import SettingsError
from cltt.machine.gpus import gpus_given, why_no_cuda

if TYPE_CHECKING:
    import torch

_SOURCES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class RankInfo:
    """Who this process is: ``0 <= rank < world_size``; ``local_rank`` counts within the node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def rank_info(environ: Mapping[str, str] | None = None) -> RankInfo:
    """Who this process is, from the environment; a lone process is rank 0 of 1."""
    environ = os.environ if environ is None else environ
    for names in _SOURCES:
        if all(name in environ for name in names):
            # An interactive `salloc` shell or a batch script has SLURM_NTASKS but is no task: only srun sets STEP_ID.
            if names[0].startswith("SLURM") and "SLURM_STEP_ID" not in environ:
                continue
            rank, world_size, local_rank = (int(environ[name]) for name in names)
            if not 0 <= rank < world_size:
                raise SettingsError(f"{names[0]}={rank} does not lie in 0..{names[1]}-1 = {world_size - 1}")
            return RankInfo(rank, world_size, local_rank)
    return RankInfo()


def world() -> RankInfo:
    """Rank and size of the process group that runs now (rank 0 of 1 without one)."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return _ALONE
    return _member(dist.get_rank(), dist.get_world_size())


_ALONE = RankInfo()


@lru_cache(maxsize=8)
def _member(rank: int, world_size: int) -> RankInfo:
    """A rank of the process group; the environment is parsed once, as each norm of a model asks at every step."""
    return RankInfo(rank, world_size, rank_info().local_rank)


def pick_device(name: str, info: RankInfo) -> torch.device:
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
    if kind == "mps" and info.world_size > 1:
        raise SettingsError("several ranks cannot share Apple's MPS device; start one process, or use --device cpu")
    if kind != "cuda":
        return torch.device(kind)
    if info.local_rank >= torch.cuda.device_count():
        raise SettingsError(
            f"local rank {info.local_rank} has no GPU of its own: torch finds {torch.cuda.device_count()} on this "
            "node; start one process a GPU"
        )
    torch.cuda.set_device(info.local_rank)
    return torch.device("cuda", info.local_rank)


def described(device: torch.device, info: RankInfo) -> str:
    """What a run computes on, to be printed: the device's kind and name, and the number of ranks."""
    import torch

    if device.type == "cuda":
        name = f"cuda ({torch.cuda.get_device_name(device)})"
    elif device.type == "cpu":
        name = f"the CPU (threads of torch: {torch.get_num_threads()})"
    else:
        name = device.type
    return name if info.world_size == 1 else f"{name}, {info.world_size} ranks"
