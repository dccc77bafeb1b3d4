"""``python -m tests.helpers.kill_steps ROOT OUT [--overwrite]``: builds killed before each of their changes on disk.

Each is started again, killed once more at random, and must end byte-identical to an undisturbed build. All of them are
forked from this process, which imports little and starts no thread. Prints how many kills there were.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from cltt import build_shards
from tests.helpers.folders import assert_same

# Changes are counted from 0, over all threads: files opened to write, folders made, locks, renames, removals.
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NEVER = -1


def kill_before(step: int) -> None:
    """Kill this process before its change number ``step``."""
    numbers = itertools.count()

    def look(event: str, args: tuple[Any, ...]) -> None:
        if (event in CHANGES or (event == "open" and args[2] & WRITES)) and next(numbers) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def survives(step: int, root: Path, out: Path, overwrite: bool = False) -> bool:
    """Whether a build comes to its end that is killed before its change number ``step``, if it makes so many."""
    if (pid := os.fork()) == 0:
        try:
            kill_before(step)
            build_shards(root, out, workers=1, shard_size=20_000, overwrite=overwrite)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"status {status}"
    return status == 0


def kill_at_every_step(root: Path, out: Path, overwrite: bool) -> int:
    """The number of changes that a build makes; AssertionError if a build killed before one ends otherwise."""
    rng = random.Random(0)
    calm = out / "calm"
    assert survives(NEVER, root, calm)
    for step in itertools.count():
        killed = out / f"killed-before-{step}"
        if overwrite:
            shutil.copytree(calm, killed)
        if survives(step, root, killed, overwrite):
            return step
        again = overwrite and step % 2 == 0
        survives(rng.randrange(step + 1), root, killed, again)
        assert survives(NEVER, root, killed, again)
        assert_same(killed, calm)
    raise AssertionError


if __name__ == "__main__":
    print(kill_at_every_step(Path(sys.argv[1]), Path(sys.argv[2]), "--overwrite" in sys.argv))
