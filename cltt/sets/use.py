"""Which runs use a set of shards. They are listed beside it, and lock it while they run, so that it is not removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cltt.errors import DataError
from cltt.files.locks import open_lock
from cltt.shards import layout
from cltt.text import say


def runs_path(shards: Path) -> Path:
    """The file that lists the runs that have used ``shards``, and that they lock."""
    return shards.with_name(f"{shards.name}.runs")


@contextlib.contextmanager
def in_use(shards: Path, run_dir: Path) -> Iterator[None]:
    """Keep ``shards`` from being removed while the run in ``run_dir`` works, if they were built on first use.

    Prints a note if the file of runs cannot be written. DataError if the set has been removed.
    """
    with contextlib.ExitStack() as stack:
        if shards.with_name(f"{shards.name}.source.json").is_file():
            try:
                handle = open_lock(runs_path(shards), os.O_APPEND)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_SH)
                _note(handle, run_dir)
            except OSError:  # another user's set, a read-only disk, a file system without locks
                say(
                    f"note: {runs_path(shards)} cannot be written, so `cltt prune` does not know that this run needs "
                    f"{shards}: its owner may remove it before the run is complete"
                )
            if not (shards / layout.INDEX).is_file():
                raise DataError(f"{shards} has just been removed; start the same command again, which builds it")
        yield


def _note(handle: int, run_dir: Path) -> None:
    line = f"{run_dir.resolve()}\n".encode(errors="surrogateescape")
    if line not in os.pread(handle, os.fstat(handle).st_size, 0).splitlines(keepends=True):
        os.write(handle, line)  # EBADF if the file is open for reading only


def runs_of(shards: Path) -> list[Path]:
    """The folders of the runs that have used ``shards``."""
    try:
        return [Path(os.fsdecode(line)) for line in runs_path(shards).read_bytes().splitlines()]
    except OSError:
        return []


def others_may_use(shards: Path) -> bool:
    """Whether other users may read ``shards`` but not write the file of its runs, by owners and modes."""
    index, runs = shards / layout.INDEX, runs_path(shards)
    written = runs if runs.is_file() else runs.parent
    group = index.stat().st_gid
    return any(
        _allows(index, group, stat.S_IRGRP, stat.S_IROTH)
        and all(_allows(folder, group, stat.S_IXGRP, stat.S_IXOTH) for folder in index.absolute().parents)
        and not _allows(written, group, stat.S_IWGRP, stat.S_IWOTH)
        for group in (group, None)
    )


def _allows(path: Path, group: int | None, as_group: int, as_other: int) -> bool:
    """Whether the mode of ``path`` has this right for members of ``group``; None: for everybody."""
    status = path.stat()
    return bool(status.st_mode & (as_group if status.st_gid == group else as_other))


@contextlib.contextmanager
def unused(shards: Path) -> Iterator[bool]:
    """Whether no run uses ``shards``; if so, no run can begin to use it within the block."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(runs_path(shards), "rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # held by a run, or a file system without locks
            free = isinstance(error, FileNotFoundError)
        else:
            free = True
        yield free
