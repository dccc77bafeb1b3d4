"""Which runs use a set of shards: written beside it, and locked while they run, so that none loses it."""

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
    return shards.with_name(f"{shards.name}.runs")


@contextlib.contextmanager
def in_use(shards: Path, run_dir: Path) -> Iterator[None]:
    """Hold ``shards`` for the run in ``run_dir``; nothing happens for a set that was not built on first use.

    Says it where the use cannot be noted. DataError if the set was removed since it was looked at.
    """
    with contextlib.ExitStack() as stack:
        if shards.with_name(f"{shards.name}.source.json").is_file():
            try:
                handle = open_lock(runs_path(shards), os.O_APPEND)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_SH)
                _note(handle, run_dir)
            except OSError:  # another's set, a read-only disk, a file system without locks
                say(
                    f"note: {runs_path(shards)} cannot be written, so nobody can tell that this run needs {shards}: "
                    "its owner may remove it before the run is complete"
                )
            if not (shards / layout.INDEX).is_file():
                raise DataError(f"{shards} was removed meanwhile; start again")
        yield


def _note(handle: int, run_dir: Path) -> None:
    line = f"{run_dir.resolve()}\n".encode(errors="surrogateescape")
    if line not in os.pread(handle, os.fstat(handle).st_size, 0).splitlines(keepends=True):
        os.write(handle, line)  # EBADF where it may only be read


def runs_of(shards: Path) -> list[Path]:
    """The folders of the runs that have used ``shards``."""
    try:
        return [Path(os.fsdecode(line)) for line in runs_path(shards).read_bytes().splitlines()]
    except OSError:
        return []


def others_may_use(shards: Path) -> bool:
    """Whether users may read ``shards`` who may not note that they do, as far as owners and modes tell."""
    index, runs = shards / layout.INDEX, runs_path(shards)
    noted_in = runs if runs.is_file() else runs.parent
    group = index.stat().st_gid
    return any(
        _allows(index, group, stat.S_IRGRP, stat.S_IROTH)
        and all(_allows(folder, group, stat.S_IXGRP, stat.S_IXOTH) for folder in index.absolute().parents)
        and not _allows(noted_in, group, stat.S_IWGRP, stat.S_IWOTH)
        for group in (group, None)
    )


def _allows(path: Path, group: int | None, as_group: int, as_other: int) -> bool:
    """Whether ``path`` has the right for members of ``group``, None: for everybody."""
    status = path.stat()
    return bool(status.st_mode & (as_group if status.st_gid == group else as_other))


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
