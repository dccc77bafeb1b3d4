"""Run a function in several real processes joined by gloo.

    python -m tests.helpers.ddp FOLDER RANK WORLD_SIZE TIMEOUT

The function lies pickled in FOLDER. Each rank writes its result to a file there, so that a rank that dies leaves the
others' results and its own traceback to look at.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.fork_server import fork_server


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60) -> list[Any]:
    """``[function(*args) on rank 0, ... on rank world_size - 1]``, each in a process of its own with a process group.

    Args:
        function: a module-level function; its results must be loadable by ``torch.load``.
        world_size: number of processes.
        args: picklable arguments, the same on all ranks; ``cltt.distributed.world()`` tells the ranks apart.
        timeout: seconds after which the processes are killed and TimeoutError is raised: a hang is a failure.

    Raises RuntimeError with the traceback of every rank that raised.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job").write_bytes(pickle.dumps((function, args)))
        ranks = [
            fork_server().start("tests.helpers.ddp", [name, str(rank), str(world_size), str(timeout)], os.environ)
            for rank in range(world_size)
        ]
        try:
            return _results(folder, [rank.wait(timeout) for rank in ranks])
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"a rank of {world_size} did not finish within {timeout} s") from error
        finally:
            for rank in ranks:
                rank.kill()


def _results(folder: Path, codes: list[int]) -> list[Any]:
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


def _rank_main(folder: Path, rank: int, world_size: int, timeout: float) -> None:
    """Body of one process: a file in ``folder`` is the meeting point, so no port can be taken by someone else."""
    function, args = pickle.loads((folder / "job").read_bytes())
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout))
    try:
        torch.save(function(*args), folder / f"result-{rank}")
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    _rank_main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
