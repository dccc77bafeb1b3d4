"""Several ranks of a training, each a process of its own with its output in a file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers import training
from tests.helpers.fork_server import Child, fork_server


@dataclass
class Ranks:
    """Processes ``rank 0, 1, ...``; use it in a ``with`` block, which kills what is left of them."""

    folder: Path
    processes: list[Child] = field(default_factory=list)
    ended: dict[int, float] = field(
        default_factory=dict
    )  # rank -> time.time() at which its process was seen to be gone

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    @property
    def losses(self) -> Path:
        return self.folder / "losses"

    def output(self, rank: int) -> str:
        return (self.folder / f"rank-{rank}.out").read_text()

    @property
    def outputs(self) -> str:
        return "\n".join(f"--- rank {rank}\n{self.output(rank)}" for rank in range(len(self.processes)))

    @property
    def gave_up(self) -> float:
        return float((self.folder / "gave-up").read_text())

    def follow(self, path: Path, lines: int = 0) -> None:
        """Wait until ``path`` is there and has ``lines`` lines; fails if a process ends before."""
        while not (path.is_file() and path.read_text().count("\n") >= lines):
            assert all(process.poll() is None for process in self.processes), self.outputs
            time.sleep(0.005)

    def wait(self, timeout: float = 240) -> list[int]:
        """The exit statuses, when all processes have ended; fails after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while len(self.ended) < len(self.processes):
            for rank, process in enumerate(self.processes):
                if rank not in self.ended and process.poll() is not None:
                    self.ended[rank] = time.time()
            assert time.monotonic() < deadline, f"ended: {sorted(self.ended)}\n{self.outputs}"
            time.sleep(0.01)
        return [process.returncode for process in self.processes]

    def seconds_after(self, moment: float) -> float:
        """Seconds from ``moment`` (time.time()) to the end of the last process."""
        return max(self.ended.values()) - moment


def start_ranks(
    folder: Path,
    arguments: list[str],
    world_size: int = 2,
    *,
    module: str = "tests.helpers.faulty_run",
    own_arguments: dict[int, list[str]] | None = None,
    own_folders: dict[int, Path] | None = None,
    own_environment: dict[int, dict[str, str]] | None = None,
    **environment: str,
) -> Ranks:
    """Start ``python -m module arguments`` on every rank; what is its ``own`` is a rank's alone."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks, port = Ranks(folder), training.free_port()
    shared = {**os.environ, "LOSSES": str(ranks.losses), "GAVE_UP": str(folder / "gave-up"), **environment}
    for rank in range(world_size):
        own = training.rank_environment(rank, world_size, port) | (own_environment or {}).get(rank, {})
        process = fork_server().start(
            module,
            [*arguments, *(own_arguments or {}).get(rank, [])],
            {**shared, **own},
            log=folder / f"rank-{rank}.out",
            folder=(own_folders or {}).get(rank, training.ROOT),
        )
        ranks.processes.append(process)
    return ranks
