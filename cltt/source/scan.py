"""Scanning a source folder: which files are frames, their order, which folders and videos are clips.

Only files whose name does not show that they are images are opened, so a scan costs one ``stat`` per frame; threads
hide the latency of a parallel file system. Names are bytes, as a file name need not be UTF-8.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cltt.errors import DataError, SettingsError
from cltt.files.maps import AdaptiveMap
from cltt.files.retry import SharedFile, retry
from cltt.source import names as naming
from cltt.source.image import image_kind
from cltt.source.names import EVERYTHING, Choice, has_image_name, natural_key
from cltt.source.odd import Odd, merge_odd
from cltt.source.video.kinds import HEAD_BYTES, has_raw_name, has_video_name, is_unread_video, is_video

SCAN_THREADS = 64  # more than cores: they wait for the file system
STAT_CHUNK = 16  # files per thread and call
ROOT_KEY = b"."
FOUND = b"{}"  # SourceClip.video of a video whose frames are not listed yet
NOT_AN_IMAGE, UNREAD = "not an image", "a video of a kind that is not read"
DANGLING = -1  # the size of a frame whose symbolic link leads nowhere


class SourceFrame(NamedTuple):
    """One frame, with all that is needed to read it and to tell whether its file is still the same.

    name: within its clip. size: bytes of its file; for a frame of a video, an estimate of its JPEG. mark: modification
    time of its file in ns; for a frame of a video, what names it there (``video.timeline.Timeline.ids``). entry: the
    packet where decoding of the video must begin. time: seconds from the clip's first frame, NaN in a folder. begins:
    the frame begins a part of the clip. key, video: those of its clip.
    """

    name: bytes
    size: int
    mark: int
    entry: int = 0
    time: float = math.nan
    begins: bool = False
    key: bytes = b""
    video: bytes = b""

    @property
    def path(self) -> bytes:
        """The name of the frame in messages and reports: a file's path, or a video's path with the time."""
        return moment(self.key, self.time) if self.video else join_key(self.key, self.name)


class SourceClip(NamedTuple):
    """A clip with its frames in time order.

    key: the path of its folder or video relative to the root (``b"."``: the root itself). video: JSON of what all
    frames of a video share; empty for a folder. A video whose frames are not listed yet (:data:`FOUND`) has one frame
    without a name, for the file itself; ``clips.list_clips`` lists its frames.
    """

    key: bytes
    frames: list[SourceFrame]
    video: bytes = b""


class Scan:
    """The folders under ``root`` in natural order of their keys, and what has been left out or looks odd so far."""

    def __init__(self, root: bytes, choice: Choice) -> None:
        self.root = root
        self.choice = choice
        self.keys: list[bytes] = []
        self.left_out: list[tuple[bytes, str]] = []  # (folder, reason)
        self.skipped: list[tuple[bytes, str]] = []  # (path, reason)
        self.odd: list[Odd] = []


def path_order(key: bytes) -> tuple[tuple[tuple[bytes | int, ...], ...], bytes]:
    """Sort key for the natural order of relative paths, folder by folder; the root comes first."""
    return (() if key == ROOT_KEY else tuple(natural_key(part) for part in key.split(b"/")), key)


def join_key(key: bytes, name: bytes) -> bytes:
    """The path of ``name`` in the folder ``key``, relative to the root."""
    return name if key == ROOT_KEY else key + b"/" + name


def moment(key: bytes, time: float | None) -> bytes:
    """The name of a frame of a video: ``talk.mp4#t=12.400``; without a time, that of the video."""
    return key if time is None else key + b"#t=%.3f" % time


@contextlib.contextmanager
def reading(path: bytes, what: str = "read") -> Iterator[None]:
    """Turn an OSError into a DataError that says that ``path`` cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot {what} {os.fsdecode(path)!r}: {error.strerror}") from error


def not_as_planned(path: bytes, error: OSError | None = None) -> DataError:
    """The error for a file that has changed since the plan was made or, with the system's ``error``, cannot be read."""
    what = "has changed since the plan was made"
    if isinstance(error, FileNotFoundError):
        what = f"has disappeared since the plan was made ({error.strerror})"
    elif error is not None:
        what = f"cannot be read ({error.strerror})"
    again = "put it back and start again, or make a new plan with --overwrite"
    return DataError(f"{os.fsdecode(path)!r} {what}; {again}")


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
    left_out: list[tuple[bytes, str]]


def _list_folder(root: bytes, key: bytes) -> _Folder:
    """The sub-folders of one folder: real ones, symbolic links to folders, and those left out."""
    path = os.path.join(root, key)

    def list_once() -> _Folder:
        status = os.stat(path)
        found = _Folder(key, (status.st_dev, status.st_ino), [], [], [])
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.is_dir():
                    continue
                sub_folder = join_key(key, entry.name)
                if naming.is_system_folder(entry.name):
                    found.left_out.append((sub_folder, "folder of a system or of previews"))
                elif entry.name.startswith(b"."):
                    found.left_out.append((sub_folder, "hidden folder"))
                else:
                    (found.links if entry.is_symlink() else found.folders).append(sub_folder)
        return found

    with reading(path, "list the folder"):
        return retry(path, list_once)


def _walk(scan: Scan, start: bytes, seen: set[tuple[int, int]], pool: ThreadPoolExecutor) -> list[bytes]:
    """Add all folders below ``start`` to ``scan`` without following links; returns the links to folders.

    ``seen`` gains the (device, inode) of each folder.
    """
    links = []
    level = [start]
    listed = AdaptiveMap(pool)
    while level:
        found = list(listed(lambda key: _list_folder(scan.root, key), iter(level), 4 * SCAN_THREADS))
        scan.keys += [folder.key for folder in found]
        scan.left_out += [entry for folder in found for entry in folder.left_out]
        links += [link for folder in found for link in folder.links]
        seen.update(folder.identity for folder in found)
        level = [key for folder in found for key in folder.folders]
    return links


def scan_folders(root: bytes, pool: ThreadPoolExecutor, choice: Choice = EVERYTHING) -> Scan:
    """All folders under ``root``; :func:`scan_clips` gives the files in them that ``choice`` takes.

    A folder behind a symbolic link is followed once, so links cannot loop. Folders of systems and of previews are left
    out by name.
    """
    seen: set[tuple[int, int]] = set()
    scan = Scan(root, choice)
    links = _walk(scan, ROOT_KEY, seen, pool)
    while links:
        links.sort(key=path_order)
        link = links.pop(0)
        path = os.path.join(root, link)
        status = retry(path, lambda: os.stat(path))  # noqa: B023  # called at once
        if (status.st_dev, status.st_ino) in seen:
            scan.skipped.append((link, "symbolic link to a folder that is already in"))
            continue
        links += _walk(scan, link, seen, pool)
    scan.keys.sort(key=path_order)
    scan.skipped += sorted(scan.left_out, key=lambda found: path_order(found[0]))
    return scan


# ---- files


def _list_files(scan: Scan, key: bytes) -> tuple[bytes, list[bytes], list[tuple[bytes, str]]]:
    """(key, file names in order, (path, reason) of those left out by name) of one folder."""
    names, skipped = [], []
    path = os.path.join(scan.root, key)

    def list_once() -> list[bytes]:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]

    with reading(path, "list the folder"):
        files = retry(path, list_once)
    chooses = scan.choice != EVERYTHING
    for name in files:
        if why := naming.why_left_out(name):
            skipped.append((join_key(key, name), why))
        elif chooses and not scan.choice.takes(join_key(key, name)):
            skipped.append((join_key(key, name), "not chosen by --include and --exclude"))
        else:
            names.append(name)
    return key, naming.in_order(names), sorted(skipped)


class _Files(NamedTuple):
    """The files of one folder by kind: frames, videos, and (path, reason) of those left out."""

    frames: list[SourceFrame]
    videos: list[SourceFrame]
    skipped: list[tuple[bytes, str]]


def _stat_files(root: bytes, key: bytes, names: list[bytes]) -> _Files:
    """The files ``names`` of the folder ``key``, sorted by kind."""
    found = _Files([], [], [])
    folder = os.path.join(root, key, b"")
    for name in names:
        path = folder + name
        try:
            info = retry(path, lambda: os.stat(path))  # noqa: B023  # called at once
        except OSError as error:
            if not os.path.islink(path):
                raise DataError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error
            found.frames.append(SourceFrame(name, DANGLING, 0, key=key))
            continue
        file = SourceFrame(name, info.st_size, info.st_mtime_ns, key=key)
        if not stat.S_ISREG(info.st_mode):
            found.skipped.append((join_key(key, name), "not a regular file"))
        elif has_image_name(name):
            found.frames.append(file)
        elif has_raw_name(name):
            found.videos.append(file)
        elif image_kind(head := _first_bytes(path)):
            found.frames.append(file)
        elif has_video_name(name) or is_video(head):
            found.videos.append(file)
        else:
            found.skipped.append((join_key(key, name), UNREAD if is_unread_video(name, head) else NOT_AN_IMAGE))
    return found


def _first_bytes(path: bytes) -> bytes:
    with reading(path):
        return retry(path, lambda: SharedFile(path).read(HEAD_BYTES, 0))


def _chunks(scan: Scan, mapped: AdaptiveMap) -> Iterator[tuple[bytes, list[bytes], bool]]:
    """(key, up to STAT_CHUNK file names, whether they are the last of their folder) over all folders in order."""
    listings = mapped(lambda key: _list_files(scan, key), iter(scan.keys), 4 * SCAN_THREADS)
    for key, names, skipped in listings:
        scan.skipped += skipped
        for start in range(0, max(1, len(names)), STAT_CHUNK):
            yield key, names[start : start + STAT_CHUNK], start + STAT_CHUNK >= len(names)


def scan_clips(scan: Scan, pool: ThreadPoolExecutor) -> Iterator[SourceClip]:
    """The clips of ``scan`` in order, without folders that hold no frame; ``scan.skipped`` and ``scan.odd`` grow.

    The videos of a folder come after its frames; their own frames are not listed yet.
    """

    def stat_chunk(chunk: tuple[bytes, list[bytes], bool]) -> tuple[bytes, _Files, bool]:
        key, names, last = chunk
        return key, _stat_files(scan.root, key, names), last

    frames: list[SourceFrame] = []
    videos: list[SourceFrame] = []
    duplicates = _Duplicates()
    mapped = AdaptiveMap(pool)
    for key, found, last in mapped(stat_chunk, _chunks(scan, mapped), 4 * SCAN_THREADS):
        frames += found.frames
        videos += found.videos
        scan.skipped += found.skipped
        if last:
            odd = naming.odd_names(key, [frame.name for frame in frames]) if frames else []
            scan.odd = merge_odd([*scan.odd, *odd, *duplicates.find(key, frames, videos)])
            if frames:
                yield SourceClip(key, frames)
            for file in videos:
                path = join_key(key, file.name)
                yield SourceClip(path, [file._replace(name=b"", key=path)], FOUND)
            frames, videos = [], []


class _Duplicates:
    """Finds clips that may show the same scene: frames beside a video of their name, videos of one name, copies."""

    def __init__(self) -> None:
        self._videos: set[bytes] = set()  # paths without their extensions
        self._bytes: dict[bytes, int] = {}  # by path, of all clips

    def find(self, key: bytes, frames: list[SourceFrame], videos: list[SourceFrame]) -> Iterator[Odd]:
        """What looks odd about the clips of a folder, compared with those of the folders before it."""
        flag = "--exclude GLOB leaves one of them out"
        if frames and self._videos:
            parts = key.split(b"/")
            if any(b"/".join(parts[:length]) in self._videos for length in range(1, len(parts) + 1)):
                yield Odd("folders beside a video of the same name, perhaps its frames", os.fsdecode(key), flag)
        if frames:
            yield from self._copies(key, b"", sum(frame.size for frame in frames))
        for file in videos:
            path = join_key(key, file.name)
            stem, ending = os.path.splitext(path)
            if stem in self._videos:
                yield Odd("videos of the same name as another", os.fsdecode(path), flag)
            self._videos.add(stem)
            yield from self._copies(stem, ending, file.size)

    def _copies(self, path: bytes, ending: bytes, size: int) -> Iterator[Odd]:
        self._bytes[path + ending] = size
        source = naming.copied_from(path)
        if source != path and self._bytes.get(source + ending) == size:
            what = "clips that are copies of another by name and size"
            yield Odd(what, os.fsdecode(path + ending), "--exclude GLOB leaves them out")
