"""Files that appear under their name only when whole and on disk, and what to say when they can't be written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pwd
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from cltt.errors import DataError, SettingsError
from cltt.files.regular import unexpanded
from cltt.files.retry import read_pieces


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def file_crc32(path: Path) -> int:
    crc = 0
    for piece in read_pieces(path):
        crc = zlib.crc32(piece, crc)
    return crc


def flush(path: Path) -> None:
    """Make a file's contents last, or the names in a folder (a file's own fsync does not)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM)
_FORBIDDEN = (*_DENIED, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)  # the last: /proc


def _remedy(error: OSError, path: Path) -> str:
    if error.errno in _FULL:
        return "make room and start again"
    if error.errno in _DENIED and (denied := _denied(path)):
        return f"{denied}, or choose another folder"
    if error.errno in _FORBIDDEN:
        return "mend the permissions or choose another folder"
    return "start again when it can be written"


def _denied(path: Path) -> str:
    """What stands in the way of writing ``path``, itself or a folder above it, whose it is, and what is missing."""
    for thing in (path, *path.absolute().parents):
        with suppress(OSError):
            status = thing.stat()
            right, letters = (os.W_OK | os.X_OK, "wx") if stat.S_ISDIR(status.st_mode) else (os.W_OK, "w")
            if not os.access(thing, right):
                whose = f"{_user(status.st_uid)} ({stat.filemode(status.st_mode)})"
                return f"{thing} belongs to {whose}: ask for the right to write it (chmod g+{letters})"
    return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


@contextlib.contextmanager
def writing(path: Path, remedy: str = "") -> Iterator[None]:
    """Turn the system's refusal to write into a DataError that names ``path`` and what helps against it.

    With ``remedy`` (that another path is to be given, as a person chose this one) into a SettingsError that says so.
    """
    try:
        yield
    except OSError as error:
        kind = SettingsError if remedy else DataError
        raise kind(f"cannot write {path}: {error.strerror or error}; {remedy or _remedy(error, path)}") from error


@contextlib.contextmanager
def published(path: Path, temporary: Path | None = None, *, sync: bool = True) -> Iterator[Any]:
    """A file to write (binary) that appears under ``path`` only when whole and on disk.

    A reader, or a kill at any moment, finds the old file or the new one. ``sync=False`` leaves the folder's entry to a
    later :func:`flush`, before anything speaks of this file. Raises DataError if it cannot be written.
    """
    with writing(path):
        with replacing(path, temporary or temporary_path(path)) as file:
            yield file
        if sync:
            flush(path.parent)


def temporary_path(path: Path) -> Path:
    """Where :func:`published` writes what is to appear under ``path``; one process at a time does so."""
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Any]:
    """As :func:`published`, with the system's own errors; any number of processes may do so at a time."""
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with create(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def create(path: Path) -> IO[bytes]:
    """A new file to write; what has this name is removed, not written through, as it may be a link to anywhere."""
    with suppress(FileNotFoundError):
        path.unlink()
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb")


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    with published(path, sync=sync) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path``, as :func:`replacing` does."""
    with replacing(path) as file:
        file.write(data)


def check_writable(folder: Path, remedy: str) -> None:
    """Raise SettingsError, with ``remedy``, unless files can be written to ``folder``; leaves nothing there.

    One that only a shell could have meant is refused (see :func:`cltt.files.regular.unexpanded`).
    A folder that is missing is made and removed again: only the attempt tells (think of /proc, quotas, network disks).
    A full disk is none of the reasons: it may have room again when there is something to write.
    """
    if mark := unexpanded(folder):
        raise SettingsError(f"cannot write to {folder}: no shell has replaced the {mark}; {remedy}")
    folder = folder.absolute()
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in _FULL:
            return
        why = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror or error
        raise SettingsError(f"cannot write to {folder}: {why}; {remedy}") from error
    finally:
        for path in missing:
            with suppress(OSError):  # not made, or in use by another run by now
                path.rmdir()
