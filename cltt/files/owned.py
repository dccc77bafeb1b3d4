"""Working folders that may be deleted: only what holds the marker written when it was made, and is no link.

A folder is deleted under another name, its marker last: a process that makes it anew meanwhile is not disturbed, and
the leftovers of a killed process stay identifiable. :func:`remove_leftovers` deletes them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from cltt.errors import SettingsError
from cltt.files.regular import read_regular

MARKER = "made-by-cltt"
_TEXT = b"cltt made this folder, and deletes it with all that is in it when it has done its work.\n"


def is_owned(folder: Path) -> bool:
    """Whether ``folder`` is a real folder that holds our marker."""
    try:
        text = read_regular(folder / MARKER, len(_TEXT), follow=False)
        return _is_real_folder(folder) and _TEXT.startswith(text)  # another process may be writing it now
    except OSError:
        return False


def is_empty(folder: Path) -> bool:
    """Whether ``folder`` is a real folder with nothing in it, but maybe a marker that is not written yet."""
    try:
        return _is_real_folder(folder) and set(os.listdir(folder)) <= {MARKER}
    except OSError:
        return False


def _is_real_folder(folder: Path) -> bool:
    return stat.S_ISDIR(folder.lstat().st_mode)


def claim(folder: Path) -> None:
    """Make ``folder`` and mark it; one that is there must be ours, or empty. SettingsError if it is neither."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_owned(folder):
        return
    if not is_empty(folder):
        if is_owned(folder):  # by another process, since we looked
            return
        raise SettingsError(not_ours(folder))
    handle = os.open(folder / MARKER, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        os.write(handle, _TEXT)
    finally:
        os.close(handle)


def not_ours(folder: Path) -> str:
    """What to say of a folder in the way."""
    what = "a symbolic link" if folder.is_symlink() else "not a folder that a build of this version made"
    return f"{folder} is {what}, so it is left alone; remove it yourself or choose another folder"


def remove(folder: Path) -> None:
    """Delete ``folder`` with all that is in it, and what killed calls left of it. SettingsError if it is not ours."""
    if os.path.lexists(folder):
        if not is_owned(folder):
            raise SettingsError(not_ours(folder))
        os.rename(folder, folder.with_name(f"{_prefix(folder)}{os.urandom(4).hex()}.tmp"))
    remove_leftovers(folder)


def _prefix(folder: Path) -> str:
    return f"{folder.name}.old-"


def is_leftover(folder: Path, name: str) -> bool:
    """Whether ``name``, beside ``folder``, is what a killed :func:`remove` may have left."""
    return name.startswith(_prefix(folder)) and name.endswith(".tmp")


def remove_leftovers(folder: Path) -> None:
    """Delete what killed calls of :func:`remove` left beside ``folder``; several processes may do so at a time."""
    for name in os.listdir(folder.parent):
        if is_leftover(folder, name):
            _delete(folder.with_name(name))


def _delete(folder: Path) -> None:
    """Delete ``folder`` if it is ours, or empty: a process may be killed between deleting the marker and the folder."""
    while is_owned(folder):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it too
            _delete_contents(folder)
    with contextlib.suppress(OSError):  # gone, or of others
        folder.rmdir()


def _delete_contents(folder: Path) -> None:
    """Delete all that is in ``folder``, the marker last."""
    for entry in list(os.scandir(folder)):
        if entry.name == MARKER:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    os.unlink(folder / MARKER)
