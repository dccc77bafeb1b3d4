"""Which runs use a set of shards: written beside it, and locked while they run, so that none loses it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cltt.errors import DataError
from cltt.shards import format


def runs_path(shards: Path) -> Path:
    return shards.with_name(f"{shards.name}.runs")


@contextlib.contextmanager
def in_use(shards: Path, run_dir: Path) -> Iterator[None]:
    """Hold ``shards`` for the run in ``run_dir``; nothing happens for a set that was not built on first use.

    DataError if it was removed since it was looked at.
    """
    with contextlib.ExitStack() as stack:
        if shards.with_name(f"{shards.name}.source.json").is_file():
            with contextlib.suppress(OSError):  # a set that may only be read, or a file system without locks
                handle = os.open(runs_path(shards), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_SH)
                _note(handle, run_dir)
        if not (shards / format.INDEX).is_file():
            raise DataError(f"{shards} was removed meanwhile; start again")
        yield


def _note(handle: int, run_dir: Path) -> None:
    line = f"{run_dir.resolve()}\n".encode(errors="surrogateescape")
    if line not in os.pread(handle, os.fstat(handle).st_size, 0).splitlines(keepends=True):
        os.write(handle, line)


def runs_of(shards: Path) -> list[Path]:
    """The folders of the runs that have used ``shards``."""
    try:
        return [Path(os.fsdecode(line)) for line in runs_path(shards).read_bytes().splitlines()]
    except OSError:
        return []


@contextlib.contextmanager
def unused(shards: Path) -> Iterator[bool]:
    """Whether no run uses ``shards`` now; if so, none can begin to within the block."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(runs_path(shards), "rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            free = True
        except OSError:  # held, or a file system that cannot tell
            free = False
        else:
            free = True
        yield free
