"""Run a function in several real processes joined by gloo.

The processes are spawned, not forked: torch's thread pools and autograd threads do not survive a fork. Each rank writes
its result to a file, so that a rank that dies leaves the others' results and its own traceback to look at.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60) -> list[Any]:
    """``[function(*args) on rank 0, ... on rank world_size - 1]``, each in a process of its own with a process group.

    Args:
        function: a module-level function; its results must be loadable by ``torch.load``.
        world_size: number of processes.
        args: picklable arguments, the same on all ranks; ``cltt.distributed.world()`` tells the ranks apart.
        timeout: seconds after which the processes are killed and TimeoutError is raised: a hang is a failure.

    Raises RuntimeError with the traceback of every rank that raised.
    """
    with TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        ranks = [
            context.Process(target=_rank_main, args=(function, rank, world_size, args, folder, timeout), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            _join(ranks, timeout)
        finally:
            for process in ranks:
                process.kill()
        return _results(Path(folder), [process.exitcode for process in ranks])


def _join(ranks: list[Any], timeout: float) -> None:
    for rank, process in enumerate(ranks):
        process.join(timeout)
        if process.is_alive():
            raise TimeoutError(f"rank {rank} of {len(ranks)} did not finish within {timeout} s")


def _results(folder: Path, codes: list[int | None]) -> list[Any]:
    failures = [
        f"rank {rank} (exit status {code}):\n{_read(folder / f'error-{rank}')}"
        for rank, code in enumerate(codes)
        if code
    ]
    if failures:
        raise RuntimeError("\n".join(failures))
    return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(len(codes))]


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else "(died without a traceback)"


def _rank_main(
    function: Callable[..., Any], rank: int, world_size: int, args: tuple[Any, ...], folder: str, timeout: float
) -> None:
    """Body of one process: a file in ``folder`` is the meeting point, so no port can be taken by someone else."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    store = dist.FileStore(str(Path(folder) / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout))
    try:
        torch.save(function(*args), Path(folder) / f"result-{rank}")
    except BaseException:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()
