"""The record of a source folder: its state when its shards were built, and what has changed since.

Beside the set ``shards/NAME`` lie the record ``NAME.source.json`` (``NAME.building.json`` until the set is complete),
and ``NAME.runs``, the folders of the runs that have used it (:mod:`cltt.sets.use`).
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from cltt.errors import CLTTError
from cltt.files.retry import retry
from cltt.shards import layout
from cltt.shards.dataset import ShardDataset
from cltt.source.scan import DANGLING, ROOT_KEY, SourceClip, scan_clips, scan_folders
from cltt.text import counted

# Which files are left out by name (``source.names``). 0: hidden files; 1: more; 2: snapshots and recovered files too.
RULES = 2
_THREADS = 16
_NAMED = 3  # clips or files that a sentence names


class ClipFiles(NamedTuple):
    """A clip's files: their number, their bytes, and a digest of their names, sizes and times."""

    files: int
    size: int
    digest: str


@dataclass(frozen=True)
class Source:
    """The state of a source folder at one time.

    Attributes:
        folders: every folder under the root, with its modification time in nanoseconds.
        clips: the files of each clip; None: only the folders were read (or 0.1.0 wrote the record).
        digest: hash of all names, sizes and times; None: only the folders were read.
        rules: RULES of the program that wrote the record.
    """

    folders: dict[str, int]
    clips: dict[str, ClipFiles] | None = None
    digest: str | None = None
    rules: int = 0

    @property
    def files(self) -> int:
        """The number of files."""
        return sum(clip.files for clip in (self.clips or {}).values())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(clip.size for clip in (self.clips or {}).values())


def describe(root: str, *, files: bool) -> Source:
    """The present state of the folder ``root``; ``files``: of every file, not only of the folders."""
    with ThreadPoolExecutor(_THREADS) as pool:
        scan = scan_folders(os.fsencode(root), pool)
        paths = [os.fsdecode(key) for key in scan.keys]

        def changed_at(path: str) -> int:
            return retry(os.path.join(root, path), lambda: os.stat(os.path.join(root, path)).st_mtime_ns)

        folders = dict(zip(paths, pool.map(changed_at, paths), strict=True))
        if not files:
            return Source(folders, rules=RULES)
        digest, clips = hashlib.sha256(), {}
        for clip in scan_clips(scan, pool):
            text = repr([clip.key, *((f.name, f.size, f.mark) for f in clip.frames)]).encode()
            digest.update(text)
            clips[os.fsdecode(clip.key)] = _clip_files(clip, text)
    return Source(folders, clips, digest.hexdigest(), RULES)


def _clip_files(clip: SourceClip, text: bytes) -> ClipFiles:
    sizes = [frame.size for frame in clip.frames if frame.size != DANGLING]
    return ClipFiles(len(clip.frames), sum(sizes), hashlib.sha256(text).hexdigest()[:16])


def to_json(source: Source) -> bytes:
    """The contents of a record's file."""
    return json.dumps({name: value for name, value in asdict(source).items() if value is not None}).encode()


def read_source(path: Path) -> Source | None:
    """The record in the file ``path``; None if it is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
        clips = found.get("clips")
        clips = None if clips is None else {key: ClipFiles(*values) for key, values in clips.items()}
        return Source(dict(found["folders"]), clips, found.get("digest"), found.get("rules", 0))
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None


# ---- what has changed


def same(before: Source, now: Source) -> bool:
    """Whether the folder is unchanged, as far as both states tell."""
    if now.digest is not None and before.digest is not None:
        return before.digest == now.digest or (before.rules != now.rules and not _known_folders_differ(before, now))
    if before.rules != now.rules:
        return not _known_folders_differ(before, now)
    return before.folders == now.folders  # 0.1.0 wrote no digest


def _known_folders_differ(before: Source, now: Source) -> str:
    """What differs in the folders that both list: records made by other rules list other folders and files."""
    known = before.folders.keys() & now.folders.keys()
    return _folder_differences(*({path: side.folders[path] for path in known} for side in (before, now)))


def differences(shards: Path, root: str, before: Source, now: Source) -> str:
    """What came, went or changed since ``shards`` were built, in words; "" if nothing did that both states tell."""
    if before.digest is not None and before.digest == now.digest:
        return ""
    if before.rules != now.rules:
        return _known_folders_differ(before, now)
    if before.clips is None or now.clips is None:
        return _folder_differences(before.folders, now.folders)
    came, went = sorted(now.clips.keys() - before.clips.keys()), sorted(before.clips.keys() - now.clips.keys())
    changed = sorted(key for key in before.clips.keys() & now.clips.keys() if before.clips[key] != now.clips[key])
    parts = [_counted(came, "came"), _counted(went, "went")]
    if changed:
        parts.append(_counted(changed, "changed") + _file_differences(shards, root, changed[0]))
    return "; ".join(part for part in parts if part)


def _folder_differences(before: dict[str, int], now: dict[str, int]) -> str:
    came, went = now.keys() - before.keys(), before.keys() - now.keys()
    around = {str(Path(path).parent) for path in (*came, *went)}  # folders that changed only because of these
    changed = {path for path in before.keys() & now.keys() if before[path] != now[path]}
    sides = (("came", came), ("went", went), ("changed", changed))
    return "; ".join(part for what, paths in sides if (part := _counted(sorted(paths - around), what, "folder")))


def _counted(keys: list[str], what: str, noun: str = "clip") -> str:
    return f"{counted(len(keys), noun)} {what} ({_some(keys)})" if keys else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _file_differences(shards: Path, root: str, key: str) -> str:
    """Which files of one clip came or went, compared with the names in the shards and their report, in words."""
    try:
        dataset = ShardDataset(shards)
        clips = [clip for clip in range(dataset.num_clips) if dataset.clip_key(clip) == key]
        ids = [i for clip in clips for i in range(dataset.clip_offsets[clip], dataset.clip_offsets[clip + 1])]
        before = {dataset.frame_name(i) for i in ids} | {file["file"] for file in layout.read_report(shards)["files"]}
        folder = root if key == os.fsdecode(ROOT_KEY) else os.path.join(root, key)
        now = {os.path.relpath(entry.path, root) for entry in os.scandir(folder) if entry.is_file()}
    except (CLTTError, OSError):  # the run goes on without these words
        return ""
    in_clip = {name for name in before if os.path.dirname(name) == ("" if folder == root else key)}
    sides = (now - in_clip, "came"), (in_clip - now, "went")
    words = [f"{_some(sorted(map(os.path.basename, names)))} {what}" for names, what in sides if names]
    return f": in {key} " + (", ".join(words) if words else "files have other sizes or times")
