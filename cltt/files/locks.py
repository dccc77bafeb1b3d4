"""Locks of a build and of a run's folder: held by ``flock``, so that the kernel frees them however a process dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cltt.errors import BusyError
from cltt.files import owned
from cltt.files.atomic import writing

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def _lock(handle: int, flags: int, path: Path) -> bool:
    """Whether the lock was taken; a file system without locks is used without, with a warning."""
    try:
        fcntl.flock(handle, flags)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.EBADF:  # NFS gives an exclusive lock to those alone who may write
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent} is on a file system without locks; start no second build or run there", stacklevel=4
        )
    return True


def open_lock(path: Path, flags: int = 0) -> int:
    """Descriptor of the lock file ``path``, made by the umask unless it is there.

    To write, with the further ``flags`` of ``os.open``; or only to read, where another's file allows no more: a shared
    lock needs no more, an exclusive one only on NFS. OSError if it may not be read.
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
    """Whether ``path`` is the file that was locked, not one that a finished build has removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


def holder(path: Path) -> str | None:
    """Who holds the lock file ``path``; None if nobody does, or there is no such file.

    A lock that may not be looked at counts as held.
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
    make_folder: Callable[[Path], None] = _make_folder,
) -> Iterator[None]:
    """Hold the lock file ``path``; BusyError naming the holder if another process has it and ``wait`` is false.

    ``held`` says what the holder does (default: that the folder above is being built), ``otherwise`` what helps.
    ``make_folder`` makes the lock's folder unless it is there. A lock that is a symbolic link is not followed.
    """
    held = held or f"{path.parent.parent} is being built"
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with writing(path):
            make_folder(path.parent)
            handle = open_lock(path)
        try:
            with writing(path):
                taken = _lock(handle, flags, path)
            if not taken:
                raise BusyError(f"{held} by {_name(handle)}; wait for it or {otherwise}")
            if is_still_there(handle, path):
                with contextlib.suppress(OSError):  # a full disk, another's file: it holds without a name
                    os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode().ljust(120), 0)
                yield
                return
        finally:
            os.close(handle)


def locked_in(folder: Path, name: str, **options: Any) -> contextlib.AbstractContextManager[None]:
    """As :func:`locked` for a lock in a working folder of ours, which is made, and marked as ours, if need be."""
    return locked(folder / name, make_folder=owned.claim, **options)
