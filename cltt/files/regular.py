"""Reading files that other people made. Only regular files are opened: a FIFO or a device could block the program."""

from __future__ import annotations

import codecs
import errno
import os
import stat
from pathlib import Path

from cltt.errors import SettingsError
from cltt.text import shorten

AnyPath = str | bytes | os.PathLike[str]
_LONGEST_NAME = os.pathconf("/", "PC_NAME_MAX")  # bytes


def open_regular(path: AnyPath, *, follow: bool = True) -> int:
    """Descriptor for reading ``path``; OSError unless it is a regular file (``follow``: or a link to one).

    The type is checked before the file is opened, since opening alone can block, and again after.
    """
    _require_regular(os.stat(path, follow_symlinks=follow), path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        _require_regular(os.fstat(handle), path)
    except OSError:
        os.close(handle)
        raise
    return handle


def _require_regular(status: os.stat_result, path: AnyPath) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        raise OSError(errno.EINVAL, what, os.fsdecode(path))


def read_regular(path: AnyPath, limit: int, *, follow: bool = True) -> bytes:
    """The contents of a file; OSError as in :func:`open_regular`, or if it has more than ``limit`` bytes."""
    with os.fdopen(open_regular(path, follow=follow), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"more than {limit:,} bytes", os.fsdecode(path))
        return file.read()


def read_text(path: AnyPath, limit: int) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Bytes that are not UTF-8 become surrogates, as in names of files. OSError as in :func:`read_regular`, or if the text
    holds NUL characters, as UTF-16 without a byte order mark does.
    """
    data = read_regular(path, limit)
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16", "replace") if is_utf_16 else data.decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise OSError(errno.EILSEQ, "it holds NUL bytes; save it as plain text in UTF-8", os.fsdecode(path))
    return text


def is_regular(path: Path) -> bool:
    """Whether ``path`` is a regular file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def unexpanded(path: AnyPath) -> str:
    """The ``$`` or leading ``~`` that a shell should have replaced; "" if there is none, or if the path exists.

    A shell does not replace ``$TMPDIR`` in single quotes, nor the ``~`` of ``--checkpoint-dir=~/run``.
    """
    full = Path(os.fsdecode(path))
    for part in (*reversed(full.parents), full):
        mark = "$" if "$" in part.name else "~" if str(part).startswith("~") else ""
        if mark and not os.path.lexists(part):
            return mark
    return ""


def check_path(path: AnyPath, what: str) -> None:
    """Raise SettingsError, naming ``what``, for a path that cannot be used; it need not exist."""
    shown = shorten(os.fsdecode(path), 80)
    if not os.fspath(path):
        raise SettingsError(f"{what} is empty; give a path (the current folder is .)")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        if any(len(part) > _LONGEST_NAME for part in os.fsencode(path).split(b"/")):  # for a folder still to be made
            raise SettingsError(f"{what} {shown!r} cannot be used: File name too long") from None
        if mark := unexpanded(path):
            raise SettingsError(f"{what} {shown!r} cannot be used: no shell has replaced the {mark}") from None
    except OSError as error:
        raise SettingsError(f"{what} {shown!r} cannot be used: {error.strerror}") from error
    except ValueError as error:  # it holds a NUL
        raise SettingsError(f"{what} {shown!r} cannot be used: {error}") from error
