"""Atomic writes: a file appears under its name only when it is complete and on disk; errors say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
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
    """SHA-256 of a file's contents, in hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def file_crc32(path: Path) -> int:
    """CRC-32 of a file's contents."""
    crc = 0
    for piece in read_pieces(path):
        crc = zlib.crc32(piece, crc)
    return crc


def flush(path: Path) -> None:
    """Write a file's contents, or a folder's list of names, to disk (fsync)."""
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
    """Which of ``path`` and the folders above it may not be written, its owner, and the right to ask for; or ""."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            status = place.stat()
            right, letters = (os.W_OK | os.X_OK, "wx") if stat.S_ISDIR(status.st_mode) else (os.W_OK, "w")
            if not os.access(place, right):
                try:
                    owner = place.owner()
                except KeyError:
                    owner = f"user {status.st_uid}"
                mode = stat.filemode(status.st_mode)
                return f"{place} belongs to {owner} ({mode}): ask for the right to write it (chmod g+{letters})"
    return ""


@contextlib.contextmanager
def writing(path: Path, remedy: str = "") -> Iterator[None]:
    """Turn an OSError into a DataError that names ``path`` and says what to do.

    With ``remedy``, what to do about a path that a flag gave, it is a SettingsError that says ``remedy``.
    """
    try:
        yield
    except OSError as error:
        kind = SettingsError if remedy else DataError
        raise kind(f"cannot write {path}: {error.strerror or error}; {remedy or _remedy(error, path)}") from error


@contextlib.contextmanager
def published(path: Path, temporary: Path | None = None, *, sync: bool = True) -> Iterator[Any]:
    """A binary file to write, which appears under ``path`` when the block ends without an error.

    A reader finds the old file or the new one, also after a kill. Only one process at a time may write ``path``. With
    ``sync=False`` the caller calls :func:`flush` on the folder, before it writes a file that names this one.

    Raises DataError if the file cannot be written.
    """
    with writing(path):
        with replacing(path, temporary or temporary_path(path)) as file:
            yield file
        if sync:
            flush(path.parent)


def temporary_path(path: Path) -> Path:
    """The temporary file of :func:`published` for ``path``."""
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def replacing(path: Path, temporary: Path | None = None) -> Iterator[Any]:
    """As :func:`published`, for any number of processes at a time; raises OSError instead of DataError."""
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
    """A new binary file to write. An old file of this name is removed first: it may be a link to another file."""
    with suppress(FileNotFoundError):
        path.unlink()
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, as :func:`published` does."""
    with published(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, as :func:`replacing` does."""
    with replacing(path) as file:
        file.write(data)


def check_writable(folder: Path, remedy: str) -> None:
    """Raise SettingsError, which ends with ``remedy``, unless files can be written to ``folder``; leaves no files.

    Only an attempt can tell (/proc, quotas, network disks). A missing folder is tried under another name, which is
    removed again: other processes may make, check and use the folder itself at the same time. A full disk is no error
    here: it may have room when there is something to write. A path with a ``$NAME`` or ``~`` that no shell has replaced
    is an error (see :func:`cltt.files.regular.unexpanded`).
    """
    if mark := unexpanded(folder):
        raise SettingsError(f"cannot write to {folder}: no shell has replaced the {mark}; {remedy}")
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        if there == folder:
            tempfile.TemporaryFile(dir=folder).close()
            return
        with tempfile.TemporaryDirectory(prefix=".cltt-check-", dir=there) as tried:
            inside = Path(tried) / folder.relative_to(there)
            inside.mkdir(parents=True)
            tempfile.TemporaryFile(dir=inside).close()
    except OSError as error:
        if error.errno in _FULL:
            return
        why = "there is a file of that name" if there == folder and not folder.is_dir() else error.strerror or error
        raise SettingsError(f"cannot write to {folder}: {why}; {remedy}") from error
