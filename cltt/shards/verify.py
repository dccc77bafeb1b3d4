"""Checking a set of shards: sizes, hashes and CRCs; on demand every bit of every frame, and the source folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cltt.errors import DataError, InvalidImage
from cltt.files import atomic, threads
from cltt.files.regular import is_regular, open_regular
from cltt.shards import checks, format, tar
from cltt.shards.corrupt import decode_problem
from cltt.shards.dataset import ShardDataset
from cltt.source import image, scan, videos
from cltt.text import counted

CHUNK = 64  # frames checked by one thread at a time ...
VIDEO_CHUNK = 1024  # ... where they may be of videos, which are decoded from some way before the first
PIECE = 1 << 20  # records looked at together
NO_SOURCE = "no source file"
OTHER_NOW = "not what the source file gives"


@dataclass(frozen=True)
class Mismatch:
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
    keys: Callable[[int], str]
    decode: bool
    root: bytes | None
    sources: _Videos | None


def verify_shards(
    path: str | os.PathLike[str],
    *,
    decode: bool = False,
    source_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> list[Mismatch]:
    """Everything that is not as it was written in the shards at ``path``; an empty list if nothing is.

    Holds all of it to what :mod:`cltt.shards.checks` asks: sizes and hashes, the index, each frame's record, member
    name and CRC. ``decode`` reads every bit of each frame; ``source_dir`` compares each frame with the file it was made
    from, and looks for files that are in neither the shards nor the report; a clip folder that only one side has is
    named once, not file by file. Nothing outside both folders is read. Raises DataError if there is no readable index.
    """
    folder = Path(path)
    root = None if source_dir is None else scan.check_root(source_dir)
    index = checks.read_index(folder)
    mismatches = list(_index_mismatches(folder, index))
    if any(mismatch.name in format.INDEX_FILES for mismatch in mismatches):
        return mismatches  # without the index there is no telling what a frame should be
    dataset = ShardDataset(folder)
    if astray := _records_mismatch(dataset):
        return [*mismatches, astray]
    sources = None if root is None else _Videos(root, index["settings"])
    job = _Job(folder, index, dataset.clip_key, decode, root, sources)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for shard, ids in enumerate(_shard_ids(dataset)):
            mismatches += _shard_mismatches(job, dataset, shard, ids, pool)
    if root is None:
        return mismatches
    return list(dict.fromkeys(_missing_clips_once(root, mismatches))) + list(_forgotten(job, dataset))


def _index_mismatches(folder: Path, index: dict[str, Any]) -> Iterator[Mismatch]:
    for name, written in index["files"].items():
        file = folder / name
        if not os.path.lexists(file):
            yield Mismatch(name, "missing; build the shards again with --overwrite")
        elif not is_regular(file):
            yield Mismatch(name, "not a regular file; copy the set again")
        elif file.stat().st_size != written["size"] or atomic.file_sha256(file) != written["sha256"]:
            yield Mismatch(name, "not what was written; build the shards again with --overwrite")


def _records_mismatch(dataset: ShardDataset) -> Mismatch | None:
    """The one thing to say if the records are not those of frames one behind the other, each within its shard."""
    last = None
    for start in range(0, dataset.num_frames, PIECE):
        records = dataset.frame_records(np.arange(start, min(start + PIECE, dataset.num_frames)))
        joined = records if last is None else np.concatenate([last, records])
        if not checks.records_in_order(joined, dataset.shard_sizes):
            where = f"records {start} to {start + len(records) - 1}"
            return Mismatch(format.FRAMES, f"{where} are not those of frames in order, each within its shard")
        last = records[-1:]
    return None


def _shard_ids(dataset: ShardDataset) -> Iterator[range]:
    """The frame ids of each shard; the records are in order."""
    bounds = [0]
    for shard in range(len(dataset.shards)):
        low, high = bounds[-1], dataset.num_frames
        while low < high:  # the first frame of a later shard
            middle = (low + high) // 2
            low, high = (middle + 1, high) if dataset.frame_records([middle])["shard"][0] <= shard else (low, middle)
        bounds.append(low)
        yield range(bounds[-2], low)


def _shard_mismatches(
    job: _Job, dataset: ShardDataset, shard: int, ids: range, pool: ThreadPoolExecutor
) -> list[Mismatch]:
    written = job.index["shards"][shard]
    try:
        handle = open_regular(job.path / written["name"], follow=False)
    except FileNotFoundError:
        return [Mismatch(written["name"], f"missing, with {len(ids)} frames; copy it again or build again")]
    except OSError as error:
        return [Mismatch(written["name"], f"{error.strerror}; copy it again or build again")]
    try:
        summed = pool.submit(_sum_shard, handle)
        size = VIDEO_CHUNK if dataset.frame_time(ids[:1]) is not None else CHUNK
        chunks = (ids[start : start + size] for start in range(0, len(ids), size))
        found = threads.ordered_map(pool, lambda chunk: _frame_mismatches(job, dataset, handle, chunk), chunks, 64)
        mismatches = [mismatch for chunk in found for mismatch in chunk]
        size, crc = summed.result()
    finally:
        os.close(handle)
    if size != written["size"]:
        mismatches.insert(0, Mismatch(written["name"], f"{size} bytes, {written['size']} were written; copy it again"))
    elif crc != written["crc"]:
        where = "see its frames below" if mismatches else "the damage lies between the frames"
        mismatches.insert(0, Mismatch(written["name"], f"CRC mismatch ({where}); copy it again or build again"))
    return mismatches


def _sum_shard(handle: int) -> tuple[int, int]:
    """(size, CRC-32) of an open file."""
    crc = size = 0
    while piece := os.pread(handle, 1 << 20, size):
        crc = zlib.crc32(piece, crc)
        size += len(piece)
    return size, crc


def _frame_mismatches(job: _Job, dataset: ShardDataset, handle: int, ids: range) -> list[Mismatch]:
    """What is wrong with neighbouring frames of one shard."""
    mismatches = []
    whole: list[tuple[bytes, str, int]] = []  # of videos: member, name, CRC
    times = dataset.frame_time(ids)
    for at, (frame, record) in enumerate(zip(ids, dataset.frame_records(ids), strict=True)):
        size, offset = int(record["size"]), int(record["offset"])
        data = os.pread(handle, size, offset)
        name, path, of_video = "", b"", times is not None and not np.isnan(times[at])
        try:
            member = tar.read_member(lambda n, at: os.pread(handle, n, at), offset)
            path = tar.source_path(member.name)
            name = dataset.frame_name(frame) if of_video else os.fsdecode(path)
            problem = _member_problem(job, dataset, frame, member, size)
        except DataError as error:
            problem = str(error)
        problem = _frame_problem(job, data, record) or problem
        if not problem and job.root is not None:
            if of_video:
                whole.append((path, name, int(record["crc"])))
            else:
                problem = _source_problem(job, path, int(record["crc"]))
        if problem:
            mismatches.append(Mismatch(name or f"frame at offset {offset}", problem))
    if job.sources is not None:
        mismatches += job.sources.mismatches(whole)
    return mismatches


def _file_name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


class _Videos:
    """Compares frames with those that the videos give now; for many threads."""

    def __init__(self, root: bytes, settings: dict[str, Any]) -> None:
        self._root = root
        self._sampling = videos.sampling_of(settings)
        self._listed: dict[bytes, scan.SourceClip] = {}
        self._lock = threading.Lock()

    def mismatches(self, frames: list[tuple[bytes, str, int]]) -> list[Mismatch]:
        """Of neighbouring frames (path of the member, name, CRC), those that their videos do not give."""
        found: list[Mismatch] = []
        for key, group in itertools.groupby(frames, lambda frame: frame[0].rpartition(b"/")[0]):
            try:
                found += self._compare(key, list(group))
            except DataError as error:
                gone = not os.path.exists(os.path.join(self._root, key))
                found.append(Mismatch(os.fsdecode(key), "no such video in the source" if gone else str(error)))
        return found

    def _compare(self, key: bytes, frames: list[tuple[bytes, str, int]]) -> Iterator[Mismatch]:
        clip = self._clip(key)
        given = {frame.name: (frame.mark, frame.entry) for frame in clip.frames}
        here = [frame for frame in frames if _file_name(frame[0]) in given]
        yield from (Mismatch(name, OTHER_NOW) for path, name, _ in frames if _file_name(path) not in given)
        wanted = [given[_file_name(path)] for path, _, _ in here]
        options: dict[str, Any] = {"resize_short": self._sampling.resize_short, "quality": self._sampling.quality}
        stored = videos.read_frames(self._root, key, clip.video, wanted, **options)
        for (_, name, crc), one in zip(here, stored, strict=True):
            if isinstance(one, InvalidImage) or zlib.crc32(one.data) != crc:
                yield Mismatch(name, OTHER_NOW)

    def _clip(self, key: bytes) -> scan.SourceClip:
        with self._lock:
            if key not in self._listed:
                self._listed[key] = videos.list_one(self._root, key, self._sampling)
            return self._listed[key]


def _member_problem(job: _Job, dataset: ShardDataset, frame: int, member: tar.Member, size: int) -> str:
    checks.check_member(member.name)
    folder = os.fsencode(job.keys(int(dataset.clip_of(frame))))
    if (member.name.rpartition(b"/")[0] or scan.ROOT_KEY) != folder or member.size != size:
        return "its tar header has another clip or size than the index"
    return ""


def _frame_problem(job: _Job, data: bytes, record: Any) -> str:
    if len(data) != int(record["size"]):
        return "cut off"
    if zlib.crc32(data) != int(record["crc"]):
        return "CRC mismatch"
    return decode_problem(data) if job.decode else ""


def _source_problem(job: _Job, path: bytes, crc: int) -> str:
    assert job.root is not None
    settings = job.index["settings"]
    try:
        data = image.read_source(os.path.join(job.root, path), image.MAX_PIXELS)
        if zlib.crc32(data) == crc:
            return ""
        short, quality = settings["resize_short"], settings["quality"]
        stored = image.as_stored(data, verify="header", resize_short=short, quality=quality)
    except OSError as error:
        return f"{NO_SOURCE}: {error.strerror}"
    except InvalidImage as error:
        return f"the source file is no picture now: {error}"
    return "" if zlib.crc32(stored.data) == crc else OTHER_NOW


def _missing_clips_once(root: bytes, mismatches: list[Mismatch]) -> list[Mismatch]:
    """``mismatches`` with the frames of a folder that the source lacks as one line, where the first of them stood."""
    lost: dict[str, int] = {}
    grouped: list[Mismatch | str] = []
    for mismatch in mismatches:
        folder = mismatch.name.rpartition("/")[0]
        is_lost = folder in lost or (folder and not os.path.isdir(os.path.join(root, os.fsencode(folder))))
        if not (mismatch.problem.startswith(NO_SOURCE) and is_lost):
            grouped.append(mismatch)
            continue
        if folder not in lost:
            grouped.append(folder)
        lost[folder] = lost.get(folder, 0) + 1
    return [
        Mismatch(item, f"no such folder in the source ({counted(lost[item], 'frame')} here)")
        if isinstance(item, str)
        else item
        for item in grouped
    ]


def _forgotten(job: _Job, dataset: ShardDataset) -> Iterator[Mismatch]:
    """Source files that are neither in the shards nor in the report."""
    assert job.root is not None
    known: dict[bytes, set[bytes]] = defaultdict(set)
    for path in _known_paths(job, dataset):
        folder, _, name = path.rpartition(b"/")
        known[folder or scan.ROOT_KEY].add(name)
    with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
        for clip in scan.scan_clips(scan.scan_folders(job.root, pool), pool):
            if clip.video:
                folder, _, name = clip.key.rpartition(b"/")
                if clip.key not in known and name not in known[folder or scan.ROOT_KEY]:
                    yield Mismatch(os.fsdecode(clip.key), "video in the source, not in the shards")
                continue
            if clip.key not in known:
                files = counted(len(clip.frames), "file")
                yield Mismatch(os.fsdecode(clip.key), f"folder with {files} in the source, not in the shards")
                continue
            for frame in clip.frames:
                if frame.name not in known[clip.key]:
                    yield Mismatch(os.fsdecode(scan.join_key(clip.key, frame.name)), "in the source, not in the shards")


def _known_paths(job: _Job, dataset: ShardDataset) -> Iterator[bytes]:
    for file in format.read_report(job.path)["files"]:
        yield os.fsencode(file["file"])
        yield os.fsencode(file["file"].partition("#t=")[0])  # the video of a moment
    for clip in range(dataset.num_clips):
        with contextlib.suppress(DataError):
            yield os.fsencode(dataset.clip_key(clip)) + b"/"
    for frame in range(dataset.num_frames):
        try:
            yield os.fsencode(dataset.frame_name(frame))
        except DataError:
            continue  # already named
