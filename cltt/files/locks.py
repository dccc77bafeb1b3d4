"""Lock files of builds and runs. They are held by ``flock``: the kernel frees them when a process dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cltt.errors import BusyError
from cltt.files import owned
from cltt.files.atomic import writing

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _lock(handle: int, flags: int, path: Path) -> bool:
    """Whether the lock was taken; True, with a warning, on a file system without locks."""
    try:
        fcntl.flock(handle, flags)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EBADF:  # on NFS an exclusive lock needs the right to write
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent} is on a file system without locks; start no second build or run there", stacklevel=4
        )
    return True


def open_lock(path: Path, flags: int = 0) -> int:
    """Descriptor of the lock file ``path``, which is made if it does not exist. OSError if it cannot be opened.

    It is open for writing, with the further ``flags`` of ``os.open``. Another user's file may be open for reading only:
    that is enough for a lock, except for an exclusive one on NFS.
    """
    always = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | always | flags, 0o666)
    except OSError as error:
        if error.errno in _DENIED:
            with contextlib.suppress(OSError):
                return os.open(path, os.O_RDONLY | always)
        raise


def is_still_there(handle: int, path: Path) -> bool:
    """Whether ``path`` is still the open file ``handle``: a finished build may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def holder(path: Path) -> str | None:
    """The process that holds the lock file ``path``; None if none does, or if the file does not exist.

    A lock file that may not be read counts as held.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        return "a process of another user"
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _name(handle)
    except OSError:
        return None
    finally:
        os.close(handle)


def _name(handle: int) -> str:
    return os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    shared: bool = False,
    wait: bool = False,
    held: str = "",
    otherwise: str = "build elsewhere",
    in_owned_folder: bool = False,
) -> Iterator[None]:
    """Hold the lock file ``path``; its folder is made if it does not exist.

    Args:
        path: a symbolic link is not followed.
        shared: others may hold it too, if they share it.
        wait: wait until the lock is free.
        held: what the holder does, for the error.
        otherwise: what else the user can do, for the error.
        in_owned_folder: the folder is a working folder that may be deleted (:mod:`cltt.files.owned`).

    Raises BusyError, which names the holder, if another process has the lock and ``wait`` is false.
    """
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with writing(path):
            if in_owned_folder:
                owned.claim(path.parent)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
            handle = open_lock(path)
        try:
            with writing(path):
                taken = _lock(handle, flags, path)
            if not taken:
                raise BusyError(f"{held or f'{path} is held'} by {_name(handle)}; wait for it or {otherwise}")
            if is_still_there(handle, path):
                with contextlib.suppress(OSError):  # on a full disk, or in another user's file, the name is left out
                    os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode().ljust(120), 0)
                yield
                return
        finally:
            os.close(handle)


def locked_in(folder: Path, name: str, **options: Any) -> contextlib.AbstractContextManager[None]:
    """As :func:`locked`, for the lock ``name`` in a working folder (:mod:`cltt.files.owned`)."""
    return locked(folder / name, in_owned_folder=True, **options)
