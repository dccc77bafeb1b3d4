"""The rank of this process, and the device that it uses.

The rank is read from torchrun's variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``) or, under plain ``srun``, from
those of Slurm's step (``SLURM_PROCID``, ``SLURM_STEP_NUM_TASKS``, ``SLURM_LOCALID``). ``SLURM_NTASKS`` does not tell: a
batch script and the shell of ``salloc`` have it too, and are one process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cltt.errors import DeviceError, SettingsError
from cltt.machine.gpus import driver_fits, gpus_given, number_given, why_no_cuda

if TYPE_CHECKING:
    import torch

_SOURCES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class RankInfo:
    """A process among the ranks: ``0 <= rank < world_size``; ``local_rank`` counts within the node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def rank_info(environ: Mapping[str, str] | None = None) -> RankInfo:
    """The rank of this process, from the environment; without variables of a launcher it is rank 0 of 1."""
    environ = os.environ if environ is None else environ
    names = _source(environ)
    if names is None:
        return RankInfo()
    rank, world_size, local_rank = (int(environ[name]) for name in names)
    if not 0 <= rank < world_size:
        raise SettingsError(
            f"{names[0]}={rank} is not from 0 to {names[1]}-1 = {world_size - 1}; these variables belong to other "
            f"processes: `unset {names[0]}` to start one process"
        )
    return RankInfo(rank, world_size, local_rank)


def said_by() -> str:
    """The variables that give this process its rank, with their values, for a message."""
    names = _source(os.environ) or ()
    return " and ".join(f"{name}={os.environ[name]}" for name in names[:2])


def _source(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    for names in _SOURCES:
        if all(name in environ for name in names):
            # The first task of `srun --pty` is a shell in a terminal: a program started there is one process.
            pty = names[0].startswith("SLURM") and "SLURM_PTY_PORT" in environ and _has_terminal()
            return None if pty else names
    return None


def _has_terminal() -> bool:
    """Whether this process has a terminal; other tasks of ``srun`` that inherit SLURM_PTY_PORT have none."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def world() -> RankInfo:
    """This rank in the process group; rank 0 of 1 without a process group."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return RankInfo()
    return _member(dist.get_rank(), dist.get_world_size())


@lru_cache(maxsize=8)
def _member(rank: int, world_size: int) -> RankInfo:
    """A rank of the process group; cached, since each BatchNorm of a model asks at every step."""
    return RankInfo(rank, world_size, rank_info().local_rank)


def pick_device(name: str, info: RankInfo) -> torch.device:
    """The device of a rank: ``auto`` is CUDA, else Apple's MPS, else the CPU; on CUDA each local rank has a GPU.

    Raises SettingsError if the device does not exist, if a node has fewer GPUs than ranks, or if ``auto`` would choose
    another device although the process was given GPUs: a job must not train on the CPU unnoticed. Raises DeviceError if
    GPUs do not work although their driver fits: the same job may work on another node.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    given = gpus_given()
    if name in ("auto", "cuda") and given and not there["cuda"]:
        kind_of_error = DeviceError if driver_fits(torch.version.cuda) else SettingsError
        raise kind_of_error(
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
    found_gpus = torch.cuda.device_count()
    if info.local_rank >= found_gpus:
        kind_of_error = DeviceError if info.local_rank < number_given() else SettingsError
        raise kind_of_error(
            f"local rank {info.local_rank} has no GPU of its own: torch finds {found_gpus}"
            f"{f' ({given})' if given else ''}; start one process per GPU, each of which can see all GPUs of its node "
            "(--gpus-per-node, not --gpus-per-task), or look for a broken GPU with nvidia-smi"
        )
    torch.cuda.set_device(info.local_rank)
    return torch.device("cuda", info.local_rank)


def described(device: torch.device, info: RankInfo) -> str:
    """The device's kind and name, and the number of ranks, for a line of output."""
    import torch

    if device.type == "cuda":
        name = f"cuda ({torch.cuda.get_device_name(device)})"
    elif device.type == "cpu":
        name = f"the CPU (threads of torch: {torch.get_num_threads()})"
    else:
        name = device.type
    return name if info.world_size == 1 else f"{name}, {info.world_size} ranks"
