"""Verifying a set of shards: sizes, hashes and CRCs; optionally every frame's pixels, and the source folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import zlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cltt.errors import DataError, FrameError, InvalidImage
from cltt.files import maps
from cltt.files.regular import is_regular
from cltt.shards import checks, layout, tar
from cltt.shards.dataset import ShardDataset
from cltt.shards.folder import Dataset
from cltt.source import image, jpeg, pixels, scan, videos
from cltt.text import counted

CHUNK = 64  # frames per task of a thread
VIDEO_CHUNK = 1024  # the same for frames of videos: decoding starts some frames before the first
PIECE = 1 << 20  # records checked together
THREADS = 4  # threads of corrupt_frames
NO_SOURCE = "no source file"
OTHER_NOW = "differs from what the source file gives"
REMEDY = "copy it again, or build the shards again with --overwrite"


@dataclass(frozen=True)
class Mismatch:
    """A file of the set, or a frame, that differs from what the build wrote; frames are named by their source path."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


@dataclass(frozen=True)
class _Job:
    """What is checked of each frame: see :func:`verify_shards`."""

    decode: bool
    settings: dict[str, Any]
    root: bytes | None
    sources: _Videos | None


def verify_shards(
    path: str | os.PathLike[str],
    *,
    decode: bool = False,
    source_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> list[Mismatch]:
    """All damage in the shards at ``path``; an empty list if they are as the build wrote them.

    It checks the sizes and hashes of all files, the index, and each frame's record, member name and CRC.

    Args:
        path: folder of the shards. Only this folder and ``source_dir`` are read.
        decode: also decode every frame.
        source_dir: also compare every frame with its source file, and report source files that are neither in the
            shards nor in their report. A clip folder that only one side has is reported once.
        workers: number of threads; None: one per core.

    Raises DataError if there is no readable index.
    """
    folder = Path(path)
    root = None if source_dir is None else scan.check_root(source_dir)
    index = checks.read_index(folder)
    mismatches = [found for name, written in index["files"].items() for found in _file_mismatch(folder, name, written)]
    if any(found.name in layout.INDEX_FILES for found in mismatches):
        return mismatches  # frames cannot be checked without the index
    dataset = ShardDataset(folder)
    if mismatch := _records_mismatch(dataset):
        return [*mismatches, mismatch]
    sources = None if root is None else _Videos(root, dataset.settings)
    job = _Job(decode, dataset.settings, root, sources)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for shard, ids in enumerate(_shard_ids(dataset)):
            mismatches += _shard_mismatches(job, dataset, shard, ids, pool)
    if root is None:
        return mismatches
    return list(dict.fromkeys(_missing_clips_once(root, mismatches))) + list(_forgotten(root, dataset))


def _file_mismatch(folder: Path, name: str, written: Mapping[str, Any]) -> list[Mismatch]:
    problem = checks.file_problem(folder / name, written)
    return [Mismatch(name, f"{problem}; {REMEDY}")] if problem else []


def corrupt_frames(dataset: Dataset, clips: NDArray[np.int64], *, decode: bool) -> list[FrameError]:
    """Errors of the frames of ``clips`` that cannot be read or have a wrong CRC; with ``decode`` also be decoded."""
    clip_ids = (range(*dataset.clip_offsets[clip : clip + 2].tolist()) for clip in clips.tolist())
    chunks = (ids[start : start + CHUNK] for ids in clip_ids for start in range(0, len(ids), CHUNK))
    corrupt: list[FrameError] = []
    total = int(dataset.clip_lengths[clips].sum())
    bar = tqdm(total=total, desc="verify", unit="frame", delay=2, leave=False, disable=None)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        checked = maps.ordered_map(
            pool, lambda ids: (len(ids), _corrupt_among(dataset, ids, decode)), chunks, 4 * THREADS
        )
        for count, found in checked:
            corrupt += found
            bar.update(count)
    return corrupt


def _corrupt_among(dataset: Dataset, ids: range, decode: bool) -> list[FrameError]:
    """As :func:`corrupt_frames`, for frame ids."""
    corrupt = []
    for frame, data in zip(ids, dataset.read_each(ids), strict=True):
        if isinstance(data, FrameError):
            corrupt.append(data)
        elif decode and (problem := _decode_problem(data)):
            corrupt.append(FrameError(frame, dataset.frame_name(frame), problem))
    return corrupt


def _decode_problem(data: bytes) -> str:
    """Why a stored frame cannot be decoded completely; "" if it can."""
    try:
        info = jpeg.jpeg_info(data)
        image.check_pixels(info.width, info.height, image.MAX_PIXELS)
        jpeg.check_scans(data, info)
        pixels.check_every_bit(data)
    except InvalidImage as error:
        return str(error)
    return ""


def _records_mismatch(dataset: ShardDataset) -> Mismatch | None:
    """The first records that are not in order or not within their shards; None if all are."""
    last = None
    for start in range(0, dataset.num_frames, PIECE):
        records = dataset.frame_records(np.arange(start, min(start + PIECE, dataset.num_frames)))
        joined = records if last is None else np.concatenate([last, records])
        if not checks.records_in_order(joined, dataset.shard_sizes):
            where = f"records {start} to {start + len(records) - 1}"
            return Mismatch(layout.FRAMES, f"{where} are not in order, or lie outside their shards; {REMEDY}")
        last = records[-1:]
    return None


def _shard_ids(dataset: ShardDataset) -> Iterator[range]:
    """The frame ids of each shard, found by bisection, as the records are in order."""
    ids, first = range(dataset.num_frames), 0
    for shard in range(len(dataset.shards)):
        stop = bisect_right(ids, shard, key=lambda frame: dataset.frame_records([frame])["shard"][0])
        yield range(first, stop)
        first = stop


def _shard_mismatches(
    job: _Job, dataset: ShardDataset, shard: int, ids: range, pool: ThreadPoolExecutor
) -> list[Mismatch]:
    written = dataset.shards[shard]
    if not is_regular(dataset.path / written["name"]):
        return _file_mismatch(dataset.path, written["name"], written)
    of_file = pool.submit(_file_mismatch, dataset.path, written["name"], written)
    size = VIDEO_CHUNK if dataset.frame_time(ids[:1]) is not None else CHUNK
    chunks = (ids[start : start + size] for start in range(0, len(ids), size))
    found = maps.ordered_map(pool, lambda chunk: _frame_mismatches(job, dataset, chunk), chunks, 64)
    return [*of_file.result(), *itertools.chain.from_iterable(list(found))]


def _frame_mismatches(job: _Job, dataset: ShardDataset, ids: range) -> list[Mismatch]:
    """The damage in neighbouring frames of one shard."""
    mismatches = []
    of_videos: list[tuple[bytes, str, int]] = []  # undamaged frames of videos: path, name, CRC
    times = dataset.frame_time(ids)
    corrupt = {error.frame_id: error.reason for error in _corrupt_among(dataset, ids, job.decode)}
    for at, (frame, record) in enumerate(zip(ids, dataset.frame_records(ids), strict=True)):
        name, problem, of_video = f"frame {frame}", "", times is not None and not np.isnan(times[at])
        try:
            member = dataset.read_member(record)
            path, crc = tar.source_path(member.name), int(record["crc"])
            name = dataset.frame_name(frame) if of_video else os.fsdecode(path)
            problem = corrupt.get(frame) or _member_problem(dataset, frame, member, int(record["size"]))
            if not problem and job.root is not None:
                if of_video:
                    of_videos.append((path, name, crc))
                else:
                    problem = _source_problem(job, path, crc)
        except DataError as error:
            problem = corrupt.get(frame) or str(error)
        if problem:
            mismatches.append(Mismatch(name, problem))
    if job.sources is not None:
        mismatches += job.sources.mismatches(of_videos)
    return mismatches


def _file_name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


class _Videos:
    """Compares frames of shards with those that the source videos give now. Any number of threads may use it."""

    def __init__(self, root: bytes, settings: dict[str, Any]) -> None:
        self._root = root
        self._sampling = videos.sampling_of(settings)
        self._listed: dict[bytes, scan.SourceClip] = {}
        self._lock = threading.Lock()

    def mismatches(self, frames: list[tuple[bytes, str, int]]) -> list[Mismatch]:
        """The frames (path, name, CRC), which must be neighbours, that their videos give otherwise or not at all."""
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
        stored = videos.read_frames(self._root, key, clip.video, wanted, self._sampling)
        for (_, name, crc), one in zip(here, stored, strict=True):
            if isinstance(one, InvalidImage) or zlib.crc32(one.data) != crc:
                yield Mismatch(name, OTHER_NOW)

    def _clip(self, key: bytes) -> scan.SourceClip:
        with self._lock:
            if key not in self._listed:
                self._listed[key] = videos.list_one(self._root, key, self._sampling)
            return self._listed[key]


def _member_problem(dataset: ShardDataset, frame: int, member: tar.Member, size: int) -> str:
    folder = os.fsencode(dataset.clip_key(int(dataset.clip_of(frame))))
    if (member.name.rpartition(b"/")[0] or scan.ROOT_KEY) != folder or member.size != size:
        return "its tar header has another clip or size than the index"
    return ""


def _source_problem(job: _Job, path: bytes, crc: int) -> str:
    assert job.root is not None
    try:
        data = image.read_source(os.path.join(job.root, path), image.MAX_PIXELS)
        if zlib.crc32(data) == crc:
            return ""
        short, quality = job.settings["resize_short"], job.settings["quality"]
        stored = image.as_stored(data, verify="header", resize_short=short, quality=quality)
    except OSError as error:
        return f"{NO_SOURCE}: {error.strerror}"
    except InvalidImage as error:
        return f"the source file is no valid image now: {error}"
    return "" if zlib.crc32(stored.data) == crc else OTHER_NOW


def _missing_clips_once(root: bytes, mismatches: list[Mismatch]) -> list[Mismatch]:
    """``mismatches``, with one line in the place of all frames of a folder that the source does not have."""
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


def _forgotten(root: bytes, dataset: ShardDataset) -> Iterator[Mismatch]:
    """Source files that are neither in the shards nor in their report."""
    known: dict[bytes, set[bytes]] = defaultdict(set)
    for path in _known_paths(dataset):
        folder, _, name = path.rpartition(b"/")
        known[folder or scan.ROOT_KEY].add(name)
    with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
        for clip in scan.scan_clips(scan.scan_folders(root, pool), pool):
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


def _known_paths(dataset: ShardDataset) -> Iterator[bytes]:
    for file in layout.read_report(dataset.path)["files"]:
        yield os.fsencode(file["file"])
        yield os.fsencode(file["file"].partition("#t=")[0])  # the video of a frame
    for clip in range(dataset.num_clips):
        with contextlib.suppress(DataError):
            yield os.fsencode(dataset.clip_key(clip)) + b"/"
    for frame in range(dataset.num_frames):
        try:
            yield os.fsencode(dataset.frame_name(frame))
        except DataError:
            continue  # reported already
