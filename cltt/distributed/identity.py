"""Who this process is among the ranks, and which device it takes.

From torchrun's variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``) or, under plain ``srun``, from those of Slurm's
step (``SLURM_PROCID``, ``SLURM_STEP_NUM_TASKS``, ``SLURM_LOCALID``). ``SLURM_NTASKS`` is the job's number of tasks: a
batch script and the shell of ``salloc`` have it, too, and are one process.
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
    names = _source(environ)
    if names is None:
        return RankInfo()
    rank, world_size, local_rank = (int(environ[name]) for name in names)
    if not 0 <= rank < world_size:
        raise SettingsError(
            f"{names[0]}={rank} does not lie in 0..{names[1]}-1 = {world_size - 1}; these are of other processes: "
            f"`unset {names[0]}` for one process alone"
        )
    return RankInfo(rank, world_size, local_rank)


def said_by() -> str:
    """The variables that say which of how many ranks this process is."""
    names = _source(os.environ) or ()
    return " and ".join(f"{name}={os.environ[name]}" for name in names[:2])


def _source(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    for names in _SOURCES:
        if all(name in environ for name in names):
            # Of `srun --pty` the first task has a terminal, and what is started from that is one process.
            pty = names[0].startswith("SLURM") and "SLURM_PTY_PORT" in environ and _has_terminal()
            return None if pty else names
    return None


def _has_terminal() -> bool:
    """Whether this process can be reached from a keyboard: a task of ``srun`` that inherits SLURM_PTY_PORT cannot."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


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
    take another device although the process was given GPUs: a job must not train on the CPU in silence. DeviceError if
    GPUs were given that do not work although their driver fits: on another node the same job may run.
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
            f"{f' ({given})' if given else ''}; start one process per GPU, each of which sees all of its node "
            "(--gpus-per-node, not --gpus-per-task), or see nvidia-smi for a broken one"
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
