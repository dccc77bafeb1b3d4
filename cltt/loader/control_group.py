"""What the control group of this process (a batch job's, a container's) leaves of the machine's memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
# (limit, in use now, the word in memory.stat for what the system gives back when asked: pages of files)
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory_left(groups: Path = GROUPS, own: Path = OWN) -> int | None:
    """Bytes that this process may still take before the tightest of its groups is full; None: nothing limits it."""
    left = [found for folder, names in _folders(groups, own) if (found := _left_in(folder, *names)) is not None]
    return min(left, default=None)


def _folders(groups: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of this process's groups, and the names of the files in them: of both versions of control groups."""
    yield groups, _V2  # in a container the group's own folder is the root
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base, names = (groups, _V2) if controllers == "" else (groups / "memory", _V1)
            here = Path(path.lstrip("/"))
            yield from ((base / folder, names) for folder in (here, *here.parents))


def _left_in(folder: Path, limit_file: str, used_file: str, given_back: str) -> int | None:
    try:
        limit, used = ((folder / name).read_text().strip() for name in (limit_file, used_file))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdecimal() or int(limit) >= 1 << 60:  # "max", or version 1's number for it
        return None
    return max(0, int(limit) - int(used) + int(stat.get(given_back, 0)))


def ranks_on_node(environ: Mapping[str, str] | None = None) -> int:
    """How many ranks share this machine's memory, by torchrun or by srun; 1 if neither says."""
    environ = os.environ if environ is None else environ
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        if match := re.match(r"\d+", environ.get(name, "")):  # srun's may be 4(x2)
            return int(match[0])
    return 1
