"""Working folders that the program makes and deletes. A marker file in a folder says that it may be deleted.

A folder is renamed before it is deleted, and its marker is deleted last. So another process can make the folder again
at once, and the leftovers of a killed process stay identifiable; :func:`remove_leftovers` deletes those.
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
    """Whether ``folder`` is a folder, not a link to one, that holds the marker."""
    try:
        text = read_regular(folder / MARKER, len(_TEXT), follow=False)
        return _is_folder(folder) and _TEXT.startswith(text)  # another process may be writing it now
    except OSError:
        return False


def is_empty(folder: Path) -> bool:
    """Whether ``folder`` is a folder, not a link to one, that holds nothing except perhaps an unfinished marker."""
    try:
        return _is_folder(folder) and set(os.listdir(folder)) <= {MARKER}
    except OSError:
        return False


def _is_folder(folder: Path) -> bool:
    return stat.S_ISDIR(folder.lstat().st_mode)


def claim(folder: Path) -> None:
    """Make ``folder`` and mark it. SettingsError if it exists and is neither marked nor empty."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_owned(folder):
        return
    if not is_empty(folder) and not is_owned(folder):  # another process may have marked it just now
        raise SettingsError(not_ours(folder))
    with os.fdopen(os.open(folder / MARKER, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "wb") as marker:
        marker.write(_TEXT)


def not_ours(folder: Path) -> str:
    """The sentence for a folder that may not be deleted."""
    what = "a symbolic link" if folder.is_symlink() else "not a folder that a build of this version made"
    return f"{folder} is {what}, so it is left alone; remove it yourself or choose another folder"


def remove(folder: Path) -> None:
    """Delete ``folder`` with its contents, and leftovers of killed calls. SettingsError if it is not marked."""
    if os.path.lexists(folder):
        if not is_owned(folder):
            raise SettingsError(not_ours(folder))
        os.rename(folder, folder.with_name(f"{folder.name}.old-{os.urandom(4).hex()}.tmp"))
    remove_leftovers(folder)


def is_leftover(folder: Path, name: str) -> bool:
    """Whether the file or folder ``name`` beside ``folder`` may be a leftover of a killed :func:`remove`."""
    return name.startswith(f"{folder.name}.old-") and name.endswith(".tmp")


def remove_leftovers(folder: Path) -> None:
    """Delete what killed calls of :func:`remove` left beside ``folder``. Several processes may call it at a time."""
    for name in os.listdir(folder.parent):
        if is_leftover(folder, name):
            _delete(folder.with_name(name))


def _delete(folder: Path) -> None:
    """Delete ``folder`` if it is marked or empty; a kill may fall between the deletion of the marker and the folder."""
    while is_owned(folder):
        with contextlib.suppress(FileNotFoundError):  # another process deletes it too
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name == MARKER):  # the marker last
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
    with contextlib.suppress(OSError):  # gone, or not empty
        folder.rmdir()
