"""Checking a set of shards: sizes, hashes and CRCs; on demand every bit of every frame, and the source folder."""

from __future__ import annotations

import os
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cltt.errors import DataError
from cltt.files import atomic, threads
from cltt.shards import format, tar
from cltt.source import image, scan
from cltt.text import counted

CHUNK = 64  # frames checked by one thread at a time
NO_SOURCE = "no source file"


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written: a file of the set, or a frame, named by its path under the root."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


@dataclass(frozen=True)
class _Job:
    """What to do to every frame."""

    path: Path
    index: dict[str, Any]
    decode: bool
    root: bytes | None


def verify_shards(
    path: str | os.PathLike[str],
    *,
    decode: bool = False,
    source_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> list[Damage]:
    """Everything that is damaged in the shards at ``path``; an empty list if nothing is.

    ``decode`` reads every bit of every frame; ``source_dir`` compares each frame with the file it was made from, and
    looks for files that are in neither the shards nor the report; a clip folder that only one side has is named once,
    not file by file. Raises DataError if there is no readable index.
    """
    folder = Path(path)
    root = None if source_dir is None else scan.check_root(source_dir)
    job = _Job(folder, format.read_index(folder), decode, root)
    damages = list(_index_damages(job))
    if any(damage.name in format.INDEX_FILES for damage in damages):
        return damages  # without the index there is no telling what a frame should be
    frames = np.load(folder / format.FRAMES, mmap_mode="r")
    bounds = np.searchsorted(frames["shard"], np.arange(len(job.index["shards"]) + 1))
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for shard, facts in enumerate(job.index["shards"]):
            first = int(bounds[shard])
            damages += _shard_damages(job, facts, np.array(frames[first : bounds[shard + 1]]), pool)
    return _missing_clips_once(root, damages) + list(_forgotten(job, frames)) if root is not None else damages


def _index_damages(job: _Job) -> Iterator[Damage]:
    for name, facts in job.index["files"].items():
        file = job.path / name
        if not file.exists():
            yield Damage(name, "missing; build the shards again with --overwrite")
        elif file.stat().st_size != facts["size"] or atomic.file_sha256(file) != facts["sha256"]:
            yield Damage(name, "not what was written; build the shards again with --overwrite")


def _shard_damages(job: _Job, facts: dict[str, Any], records: Any, pool: ThreadPoolExecutor) -> list[Damage]:
    file = job.path / facts["name"]
    if not file.exists():
        return [Damage(facts["name"], f"missing, with {len(records)} frames; copy it again or build again")]
    with file.open("rb") as shard:
        handle = shard.fileno()
        summed = pool.submit(_sum_shard, handle)
        chunks = (records[start : start + CHUNK] for start in range(0, len(records), CHUNK))
        found = threads.ordered_map(pool, lambda chunk: _frame_damages(job, handle, chunk), chunks, 64)
        damages = [damage for chunk in found for damage in chunk]
        size, crc = summed.result()
    if size != facts["size"]:
        damages.insert(0, Damage(facts["name"], f"{size} bytes, {facts['size']} were written; copy it again"))
    elif crc != facts["crc"]:
        where = "see its frames below" if damages else "the damage lies between the frames"
        damages.insert(0, Damage(facts["name"], f"CRC mismatch ({where}); copy it again or build again"))
    return damages


def _sum_shard(handle: int) -> tuple[int, int]:
    """(size, CRC-32) of an open file."""
    crc = size = 0
    while piece := os.pread(handle, 1 << 20, size):
        crc = zlib.crc32(piece, crc)
        size += len(piece)
    return size, crc


def _frame_damages(job: _Job, handle: int, records: Any) -> list[Damage]:
    """What is wrong with neighbouring frames of one shard."""
    damages = []
    for record in records:
        size, offset = int(record["size"]), int(record["offset"])
        problem = _frame_problem(job, os.pread(handle, size, offset), record)
        path = b""
        if problem or job.root is not None:
            try:
                path = tar.source_path(tar.read_member_name(lambda n, at: os.pread(handle, n, at), offset))
            except DataError as error:
                problem = problem or str(error)
        if not problem and job.root is not None:
            problem = _source_problem(job, path, int(record["crc"]))
        if problem:
            damages.append(Damage(os.fsdecode(path) or f"frame at offset {offset}", problem))
    return damages


def _frame_problem(job: _Job, data: bytes, record: Any) -> str:
    if len(data) != int(record["size"]):
        return "cut off"
    if zlib.crc32(data) != int(record["crc"]):
        return "CRC mismatch"
    if job.decode:
        try:
            image.check_every_bit(data)
        except image.BrokenPicture as error:
            return str(error)
    return ""


def _source_problem(job: _Job, path: bytes, crc: int) -> str:
    assert job.root is not None
    settings = job.index["settings"]
    try:
        with open(os.path.join(job.root, path), "rb") as file:
            data = file.read()
        if zlib.crc32(data) == crc:
            return ""
        short, quality = settings["resize_short"], settings["quality"]
        stored = image.as_stored(data, verify="header", resize_short=short, quality=quality)
    except OSError as error:
        return f"{NO_SOURCE}: {error.strerror}"
    except image.BrokenPicture as error:
        return f"the source file is broken now: {error}"
    return "" if zlib.crc32(stored.data) == crc else "not what the source file gives"


def _missing_clips_once(root: bytes, damages: list[Damage]) -> list[Damage]:
    """``damages`` with the frames of a folder that the source lacks as one line, where the first of them stood."""
    lost: dict[str, int] = {}
    grouped: list[Damage | str] = []
    for damage in damages:
        folder = damage.name.rpartition("/")[0]
        is_lost = folder in lost or (folder and not os.path.isdir(os.path.join(root, os.fsencode(folder))))
        if not (damage.problem.startswith(NO_SOURCE) and is_lost):
            grouped.append(damage)
            continue
        if folder not in lost:
            grouped.append(folder)
        lost[folder] = lost.get(folder, 0) + 1
    return [
        Damage(item, f"no such folder in the source ({counted(lost[item], 'frame')} here)")
        if isinstance(item, str)
        else item
        for item in grouped
    ]


def _forgotten(job: _Job, frames: Any) -> Iterator[Damage]:
    """Source files that are neither in the shards nor in the report."""
    assert job.root is not None
    known: dict[bytes, set[bytes]] = defaultdict(set)
    for path in _known_paths(job, frames):
        folder, _, name = path.rpartition(b"/")
        known[folder or scan.ROOT_KEY].add(name)
    with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
        for clip in scan.scan_clips(scan.scan_folders(job.root, pool), pool):
            if clip.key not in known:
                files = counted(len(clip.frames), "file")
                yield Damage(os.fsdecode(clip.key), f"folder with {files} in the source, not in the shards")
                continue
            for frame in clip.frames:
                if frame.name not in known[clip.key]:
                    yield Damage(os.fsdecode(scan.join_key(clip.key, frame.name)), "in the source, not in the shards")


def _known_paths(job: _Job, frames: Any) -> Iterator[bytes]:
    for file in format.read_report(job.path)["files"]:
        yield os.fsencode(file["file"])
    bounds = np.searchsorted(frames["shard"], np.arange(len(job.index["shards"]) + 1))
    for shard, facts in enumerate(job.index["shards"]):
        if not (job.path / facts["name"]).exists():
            continue
        with (job.path / facts["name"]).open("rb") as file:
            handle = file.fileno()
            for offset in frames["offset"][bounds[shard] : bounds[shard + 1]].tolist():
                try:
                    member = tar.read_member_name(lambda n, at: os.pread(handle, n, at), offset)  # noqa: B023
                    yield tar.source_path(member)
                except DataError:
                    continue  # already named as damaged
