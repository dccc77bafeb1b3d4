"""Files that hold decoded frames for the processes of a node: named, locked while in use, found when left over.

Every process that has such a file open holds a shared lock on it, so the kernel tells which files nobody uses.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cltt.files.locks import is_still_there

MEMORY = Path("/dev/shm")
_PREFIX = "cltt-kept-"


def path_of(folder: Path, key: str) -> Path:
    """Where this user's file of ``key`` lies in ``folder``."""
    return folder / f"{_PREFIX}{os.getuid()}-{key}"


def unused(folder: Path) -> list[Path]:
    """Files of kept frames in ``folder`` that are this user's and that no process has open."""
    return [path for path in sorted(folder.glob(f"{_PREFIX}{os.getuid()}-*")) if _is_unused(path)]


def remove_unused(path: Path) -> bool:
    """Remove a file of kept frames unless a process has it open; whether it is gone."""
    with _alone(path) as alone:
        if alone:
            path.unlink()
        return alone


def _is_unused(path: Path) -> bool:
    with _alone(path) as alone:
        return alone


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold ``path`` against all other processes, if it is there and none of them has it open: whether that is so."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = is_still_there(file, path)
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(file)


def open_shared(path: Path) -> int:
    """Descriptor of ``path``, made if need be, with a shared lock for as long as it or a mapping of it is open."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
                raise PermissionError(f"{path} is not a file of this user")
            fcntl.flock(file, fcntl.LOCK_SH)
            if is_still_there(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last user has just removed it


def anonymous() -> int:
    """Descriptor of a file in memory that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(_PREFIX)
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def release(file: int, path: Path | None) -> None:
    """Close the file; the last process that has it open removes it."""
    if path is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_still_there(file, path):
                path.unlink()
    os.close(file)
