"""What a folder of clips holds: which files are frames, in which order, and which folders are clips.

Nothing is opened here but files whose name does not tell that they are pictures, so a scan costs one ``stat`` a frame;
threads hide the latency of a parallel file system. Names are bytes all through: a file name need not be UTF-8.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cltt.errors import DataError, SettingsError
from cltt.files.patience import Handle, Patience
from cltt.files.threads import PatientMap
from cltt.source.image import IMAGE_EXTENSIONS, is_image

SCAN_THREADS = 64  # they wait for the file system, they do not compute
STAT_CHUNK = 16  # files stat'ed by one thread at a time
_DIGITS = re.compile(rb"(\d+)")
ROOT_KEY = b"."
DANGLING = -1  # the size of a frame whose symbolic link leads nowhere


class SourceFrame(NamedTuple):
    """One file that should be a frame: name within its folder, and what ``stat`` said when it was found."""

    name: bytes
    size: int
    mtime_ns: int


class SourceClip(NamedTuple):
    """A folder's frames in time order; ``key`` is the folder's path relative to the root (``b"."``: the root)."""

    key: bytes
    frames: list[SourceFrame]


class Scan:
    """The folders under ``root`` in natural order of their keys, and what was left out (path, reason) so far."""

    def __init__(self, root: bytes, keys: list[bytes], patience: Patience) -> None:
        self.root = root
        self.keys = keys
        self.patience = patience
        self.skipped: list[tuple[bytes, str]] = []


def natural_key(name: bytes) -> tuple[bytes | int, ...]:
    """Sort key under which ``frame_2`` comes before ``frame_10``: text and numbers in turn.

    ``1`` and ``01`` are equal to it; sort by the plain names first.
    """
    parts: list[bytes | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, _DIGITS.findall(name))
    return tuple(parts)


def path_order(key: bytes) -> tuple[tuple[tuple[bytes | int, ...], ...], bytes]:
    """Natural order of a relative path, folder by folder; the root comes first."""
    return (() if key == ROOT_KEY else tuple(natural_key(part) for part in key.split(b"/")), key)


def frame_number(name: bytes) -> int | None:
    """The last run of digits in the stem of ``name``, or None: what ``split_gaps`` looks at."""
    stem = os.path.splitext(name)[0]
    numbers = _DIGITS.findall(stem)
    return int(numbers[-1]) if numbers else None


def join_key(key: bytes, name: bytes) -> bytes:
    """The path of ``name`` in the folder ``key``, relative to the root."""
    return name if key == ROOT_KEY else key + b"/" + name


def has_image_name(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def check_root(root_dir: str | os.PathLike[str]) -> bytes:
    """``root_dir`` as bytes; SettingsError unless it is a folder."""
    root = os.fsencode(root_dir)
    if not os.path.isdir(root):
        raise SettingsError(f"root_dir {os.fsdecode(root)!r} is not a folder; give the folder that holds the clips")
    return root


# ---- folders


class _Folder(NamedTuple):
    key: bytes
    identity: tuple[int, int]
    folders: list[bytes]
    links: list[bytes]


def _list_folder(root: bytes, key: bytes, patience: Patience) -> _Folder:
    """The sub-folders of one folder, real ones and those behind symbolic links."""
    path = os.path.join(root, key)

    def list_once() -> _Folder:
        folders: list[bytes] = []
        links: list[bytes] = []
        facts = os.stat(path)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(b".") or not entry.is_dir():
                    continue
                (links if entry.is_symlink() else folders).append(join_key(key, entry.name))
        return _Folder(key, (facts.st_dev, facts.st_ino), folders, links)

    try:
        return patience.ask(path, list_once)
    except OSError as error:
        raise DataError(f"cannot list the folder {os.fsdecode(path)!r}: {error.strerror}") from error


def _walk(
    root: bytes, start: bytes, seen: set[tuple[int, int]], pool: ThreadPoolExecutor, patience: Patience
) -> tuple[list[bytes], list[bytes]]:
    """(folders, linked folders) reached from ``start`` without following a link; ``seen`` gains their identities."""
    keys, links = [], []
    level = [start]
    listed = PatientMap(pool)
    while level:
        found = list(listed(lambda key: _list_folder(root, key, patience), iter(level), 4 * SCAN_THREADS))
        keys += [folder.key for folder in found]
        links += [link for folder in found for link in folder.links]
        seen.update(folder.identity for folder in found)
        level = [key for folder in found for key in folder.folders]
    return keys, links


def scan_folders(root: bytes, pool: ThreadPoolExecutor, patience: Patience | None = None) -> Scan:
    """Every folder under ``root``. A folder behind a link is followed once: never twice, never in a loop.

    ``patience`` is for this scan and what :func:`scan_clips` reads.
    """
    patience = patience or Patience()
    seen: set[tuple[int, int]] = set()
    keys, links = _walk(root, ROOT_KEY, seen, pool, patience)
    scan = Scan(root, keys, patience)
    while links:
        links.sort(key=path_order)
        link = links.pop(0)
        path = os.path.join(root, link)
        facts = patience.ask(path, lambda: os.stat(path))  # noqa: B023  # called at once
        if (facts.st_dev, facts.st_ino) in seen:
            scan.skipped.append((link, "symbolic link to a folder that is already in"))
            continue
        more, more_links = _walk(root, link, seen, pool, patience)
        scan.keys += more
        links += more_links
    scan.keys.sort(key=path_order)
    return scan


# ---- frames


def _names(root: bytes, key: bytes, patience: Patience) -> tuple[bytes, list[bytes], list[tuple[bytes, str]]]:
    """(key, file names in natural order, left out) of one folder."""
    names, skipped = [], []
    path = os.path.join(root, key)

    def list_once() -> list[bytes]:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]

    try:
        files = patience.ask(path, list_once)
    except OSError as error:
        raise DataError(f"cannot list the folder {os.fsdecode(path)!r}: {error.strerror}") from error
    for name in files:
        if name.startswith(b"."):
            skipped.append((join_key(key, name), "hidden file"))
        else:
            names.append(name)
    names.sort()
    names.sort(key=natural_key)
    return key, names, sorted(skipped)


def _stat_files(
    root: bytes, key: bytes, names: list[bytes], patience: Patience
) -> tuple[list[SourceFrame], list[tuple[bytes, str]]]:
    """(frames, left out) among the files ``names`` of the folder ``key``."""
    frames, skipped = [], []
    folder = os.path.join(root, key, b"")
    for name in names:
        path = folder + name
        try:
            facts = patience.ask(path, lambda: os.stat(path))  # noqa: B023  # called at once
        except OSError as error:
            if not os.path.islink(path):
                raise DataError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error
            frames.append(SourceFrame(name, DANGLING, 0))
            continue
        if not stat.S_ISREG(facts.st_mode):
            skipped.append((join_key(key, name), "not a regular file"))
        elif has_image_name(name) or _starts_like_an_image(path, patience):
            frames.append(SourceFrame(name, facts.st_size, facts.st_mtime_ns))
        else:
            skipped.append((join_key(key, name), "not an image"))
    return frames, skipped


def _starts_like_an_image(path: bytes, patience: Patience) -> bool:
    try:
        with Handle(path) as file:
            return is_image(patience.ask(path, lambda: file.read(16, 0)))
    except OSError as error:
        raise DataError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error


def _chunks(scan: Scan, mapped: PatientMap) -> Iterator[tuple[bytes, list[bytes], bool]]:
    """(key, up to STAT_CHUNK file names, last of its folder) over all folders in order."""
    listings = mapped(lambda key: _names(scan.root, key, scan.patience), iter(scan.keys), 4 * SCAN_THREADS)
    for key, names, skipped in listings:
        scan.skipped += skipped
        for start in range(0, max(1, len(names)), STAT_CHUNK):
            yield key, names[start : start + STAT_CHUNK], start + STAT_CHUNK >= len(names)


def scan_clips(scan: Scan, pool: ThreadPoolExecutor) -> Iterator[SourceClip]:
    """The clips of ``scan`` in order, folders without a frame left out; ``scan.skipped`` grows along the way."""

    def stat_chunk(
        chunk: tuple[bytes, list[bytes], bool],
    ) -> tuple[bytes, list[SourceFrame], list[tuple[bytes, str]], bool]:
        key, names, last = chunk
        return key, *_stat_files(scan.root, key, names, scan.patience), last

    frames: list[SourceFrame] = []
    mapped = PatientMap(pool)
    for key, found, skipped, last in mapped(stat_chunk, _chunks(scan, mapped), 4 * SCAN_THREADS):
        frames += found
        scan.skipped += skipped
        if last:
            if frames:
                yield SourceClip(key, frames)
            frames = []
