"""Files of decoded frames that the processes of a node share, and how to find those that no process uses.

A process that has such a file open holds a shared lock on it. The kernel frees the lock when the process dies.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cltt.files.locks import is_still_there

MEMORY = Path("/dev/shm")
_PREFIX = "cltt-kept-"


def path_of(folder: Path, key: str) -> Path:
    """Path in ``folder`` of this user's file of ``key``."""
    return folder / f"{_PREFIX}{os.getuid()}-{key}"


def unused(folder: Path) -> list[Path]:
    """Files of kept frames in ``folder`` that are this user's and that no process has open."""
    return [path for path in sorted(folder.glob(f"{_PREFIX}{os.getuid()}-*")) if is_unused(path)]


def is_unused(path: Path) -> bool:
    """Whether the file ``path`` exists and no process has it open."""
    return _if_unused(path, lambda path: None)


def remove_unused(path: Path) -> bool:
    """Remove the file ``path`` unless a process has it open; returns whether it did."""
    return _if_unused(path, Path.unlink)


def _if_unused(path: Path, action: Callable[[Path], None]) -> bool:
    """Call ``action`` with ``path`` if that exists and no process has it open, nor can open it meanwhile."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(file, "rb+", buffering=0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = is_still_there(file, path)
        except OSError:
            return False
        if free:
            action(path)
        return free


def open_shared(path: Path) -> int:
    """Descriptor of ``path``, with a shared lock. The file is made if it does not exist.

    The lock lasts until the descriptor and all mappings of the file are closed. PermissionError for another's file.
    """
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
        os.close(file)  # the last process that used it has just removed it


def anonymous() -> int:
    """Descriptor of a new file in memory, without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(_PREFIX)
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())


def release(file: int, path: Path | None) -> None:
    """Close the descriptor ``file``; the last process that has ``path`` open also removes it (None: no name)."""
    if path is not None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_still_there(file, path):
                path.unlink()
    os.close(file)
