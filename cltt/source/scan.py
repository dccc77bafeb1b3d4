"""What a folder of clips holds: which files are frames, in which order, which folders are clips, which are videos.

Nothing is opened here but files whose name does not tell that they are pictures, so a scan costs one ``stat`` a frame;
threads hide the latency of a parallel file system. Names are bytes all through: a file name need not be UTF-8.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from cltt.errors import DataError, SettingsError
from cltt.files.retry import SharedFile, retry
from cltt.files.threads import AdaptiveMap
from cltt.source import names as naming
from cltt.source.image import IMAGE_EXTENSIONS, is_image
from cltt.source.names import EVERYTHING, Choice, natural_key
from cltt.source.odd import Odd, merge_odd
from cltt.source.video.kinds import HEAD_BYTES, has_raw_name, has_video_name, is_unread_video, is_video

SCAN_THREADS = 64  # they wait for the file system, they do not compute
STAT_CHUNK = 16  # files stat'ed by one thread at a time
_DIGITS = re.compile(rb"(\d+)")
ROOT_KEY = b"."
FOUND = b"{}"  # a video that has not been looked into
NOT_AN_IMAGE, UNREAD = "not an image", "a video of a kind that is not read"
DANGLING = -1  # the size of a frame whose symbolic link leads nowhere


class SourceFrame(NamedTuple):
    """One frame: its name within its clip, and what tells whether it is still the one that was found.

    size: bytes of its file; of a frame of a video what its JPEG will have, roughly. mark: modification time of its file
    in ns; the name of its packet in a video. entry: where decoding a video begins (``video.times.Timeline``). time:
    seconds from the clip's first frame, NaN where there are none. begins: it does not follow the frame before it.
    """

    name: bytes
    size: int
    mark: int
    entry: int = 0
    time: float = math.nan
    begins: bool = False


class SourceClip(NamedTuple):
    """Frames in time order; ``key`` is the path of their folder or video relative to the root (``b"."``: the root).

    video: what the frames of a video have in common, as JSON; empty for a folder. A video that has only been found has
    one frame, without a name: the file itself (``clips.list_clips`` looks into it).
    """

    key: bytes
    frames: list[SourceFrame]
    video: bytes = b""


class Scan:
    """The folders under ``root`` in natural order of their keys; what was left out (path, reason) or is odd so far."""

    def __init__(self, root: bytes, choice: Choice) -> None:
        self.root = root
        self.choice = choice
        self.keys: list[bytes] = []
        self.left_out: list[tuple[bytes, str]] = []  # folders, and why
        self.skipped: list[tuple[bytes, str]] = []
        self.odd: list[Odd] = []


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
    left_out: list[tuple[bytes, str]]


def _list_folder(root: bytes, key: bytes) -> _Folder:
    """The sub-folders of one folder, real ones and those behind symbolic links."""
    path = os.path.join(root, key)

    def list_once() -> _Folder:
        folders: list[bytes] = []
        links: list[bytes] = []
        left_out: list[tuple[bytes, str]] = []
        status = os.stat(path)
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.is_dir():
                    continue
                sub_folder = join_key(key, entry.name)
                if naming.is_system_folder(entry.name):
                    left_out.append((sub_folder, "folder of a system or of previews"))
                elif entry.name.startswith(b"."):
                    left_out.append((sub_folder, "hidden folder"))
                else:
                    (links if entry.is_symlink() else folders).append(sub_folder)
        return _Folder(key, (status.st_dev, status.st_ino), folders, links, left_out)

    try:
        return retry(path, list_once)
    except OSError as error:
        raise DataError(f"cannot list the folder {os.fsdecode(path)!r}: {error.strerror}") from error


def _walk(scan: Scan, start: bytes, seen: set[tuple[int, int]], pool: ThreadPoolExecutor) -> list[bytes]:
    """Linked folders below ``start``; ``scan`` gains the others, without following a link, and ``seen`` them all."""
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
    """Every folder under ``root``; :func:`scan_clips` gives the files in them that ``choice`` takes.

    A folder behind a link is followed once: never twice, never in a loop. Folders of systems and of previews are left
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


# ---- frames


def _names(scan: Scan, key: bytes) -> tuple[bytes, list[bytes], list[tuple[bytes, str]]]:
    """(key, file names in order, left out) of one folder."""
    names, skipped = [], []
    path = os.path.join(scan.root, key)

    def list_once() -> list[bytes]:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]

    try:
        files = retry(path, list_once)
    except OSError as error:
        raise DataError(f"cannot list the folder {os.fsdecode(path)!r}: {error.strerror}") from error
    chooses = scan.choice != EVERYTHING
    for name in files:
        if why := naming.why_left_out(name):
            skipped.append((join_key(key, name), why))
        elif chooses and not scan.choice.takes(join_key(key, name)):
            skipped.append((join_key(key, name), "not chosen by --include and --exclude"))
        else:
            names.append(name)
    return key, naming.in_order(names, list(map(has_image_name, names))), sorted(skipped)


class _Files(NamedTuple):
    """What the files of one folder are: pictures, videos, and what is left out with the reason."""

    frames: list[SourceFrame]
    videos: list[SourceFrame]
    skipped: list[tuple[bytes, str]]


def _stat_files(root: bytes, key: bytes, names: list[bytes]) -> _Files:
    """Sort the files ``names`` of the folder ``key``."""
    found = _Files([], [], [])
    folder = os.path.join(root, key, b"")
    for name in names:
        path = folder + name
        try:
            info = retry(path, lambda: os.stat(path))  # noqa: B023  # called at once
        except OSError as error:
            if not os.path.islink(path):
                raise DataError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error
            found.frames.append(SourceFrame(name, DANGLING, 0))
            continue
        if not stat.S_ISREG(info.st_mode):
            found.skipped.append((join_key(key, name), "not a regular file"))
        elif has_image_name(name):
            found.frames.append(SourceFrame(name, info.st_size, info.st_mtime_ns))
        elif has_raw_name(name):
            found.videos.append(SourceFrame(name, info.st_size, info.st_mtime_ns))
        elif is_image(head := _first_bytes(path)):
            found.frames.append(SourceFrame(name, info.st_size, info.st_mtime_ns))
        elif has_video_name(name) or is_video(head):
            found.videos.append(SourceFrame(name, info.st_size, info.st_mtime_ns))
        else:
            found.skipped.append((join_key(key, name), UNREAD if is_unread_video(name, head) else NOT_AN_IMAGE))
    return found


def _first_bytes(path: bytes) -> bytes:
    try:
        return retry(path, lambda: SharedFile(path).read(HEAD_BYTES, 0))
    except OSError as error:
        raise DataError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error


def _chunks(scan: Scan, mapped: AdaptiveMap) -> Iterator[tuple[bytes, list[bytes], bool]]:
    """(key, up to STAT_CHUNK file names, last of its folder) over all folders in order."""
    listings = mapped(lambda key: _names(scan, key), iter(scan.keys), 4 * SCAN_THREADS)
    for key, names, skipped in listings:
        scan.skipped += skipped
        for start in range(0, max(1, len(names)), STAT_CHUNK):
            yield key, names[start : start + STAT_CHUNK], start + STAT_CHUNK >= len(names)


def scan_clips(scan: Scan, pool: ThreadPoolExecutor) -> Iterator[SourceClip]:
    """The clips of ``scan`` in order, folders without a frame left out; ``scan.skipped`` grows along the way.

    The videos of a folder come behind its frames, not looked into.
    """

    def stat_chunk(chunk: tuple[bytes, list[bytes], bool]) -> tuple[bytes, _Files, bool]:
        key, names, last = chunk
        return key, _stat_files(scan.root, key, names), last

    frames: list[SourceFrame] = []
    videos: list[SourceFrame] = []
    twins = _Twins()
    mapped = AdaptiveMap(pool)
    for key, found, last in mapped(stat_chunk, _chunks(scan, mapped), 4 * SCAN_THREADS):
        frames += found.frames
        videos += found.videos
        scan.skipped += found.skipped
        if last:
            sizes = [file.size for file in frames]
            if frames:
                scan.odd = merge_odd([*scan.odd, *naming.odd_names(key, [frame.name for frame in frames])])
                yield SourceClip(key, frames)
            for file in videos:
                yield SourceClip(join_key(key, file.name), [file._replace(name=b"")], FOUND)
            scan.odd = merge_odd([*scan.odd, *twins.add(key, sizes, [(file.name, file.size) for file in videos])])
            frames, videos = [], []


class _Twins:
    """Finds folders of frames beside a video of their name, videos of one name, and copies: perhaps a scene twice."""

    def __init__(self) -> None:
        self._videos: set[bytes] = set()  # paths without their extensions
        self._bytes: dict[bytes, int] = {}  # by path, of all clips

    def add(self, key: bytes, frames: list[int], videos: list[tuple[bytes, int]]) -> Iterator[Odd]:
        """What is odd about a folder, after those above it; ``frames``: the sizes of their files."""
        flag = "--exclude GLOB leaves one of them out"
        if frames and self._videos:
            parts = key.split(b"/")
            if any(b"/".join(parts[:length]) in self._videos for length in range(1, len(parts) + 1)):
                yield Odd("folders beside a video of the same name, perhaps its frames", os.fsdecode(key), flag)
        if frames:
            yield from self._copies(key, b"", sum(frames))
        for name, size in videos:
            stem, ending = os.path.splitext(join_key(key, name))
            if stem in self._videos:
                yield Odd("videos of the same name as another", os.fsdecode(join_key(key, name)), flag)
            self._videos.add(stem)
            yield from self._copies(stem, ending, size)

    def _copies(self, path: bytes, ending: bytes, size: int) -> Iterator[Odd]:
        self._bytes[path + ending] = size
        source = naming.copied_from(path)
        if source != path and self._bytes.get(source + ending) == size:
            what = "clips that are copies of another by name and size"
            yield Odd(what, os.fsdecode(path + ending), "--exclude GLOB leaves them out")
