"""Reading frames from shards (:class:`ShardDataset`).

Neighbouring frames are read by one ``pread``. Shards are not memory-mapped: on a network file system each page fault
costs a round trip. Where reads wait for the storage, threads make the reads of one request together. The CRC-32 of
every frame is checked.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cltt.errors import DataError, FrameError
from cltt.files.maps import WaitGauge, map_together
from cltt.files.regular import AnyPath
from cltt.files.retry import Descriptor, SharedFile, ShortRead, retry
from cltt.shards import checks, layout, tar
from cltt.shards.clip_table import Array, _ClipTable
from cltt.source import scan
from cltt.text import counted

log = logging.getLogger(__name__)

MAX_GAP = 64 << 10  # two frames with at most this many bytes between them are read by one read
MAX_READ = 8 << 20  # bytes of one read
FEWEST, MOST, SHARE = 4, 1024, 4  # limits of open shards, and 1 / their share of the process's limit of open files
HELPERS = 8  # threads that read beside the caller, once reads wait for the storage
READS_IN_A_ROW = 8  # slow reads in a row before threads help: on busy cores a few reads only wait for the CPU


class ShardDataset(_ClipTable):
    """A complete set of shards, read by any number of threads.

    Reads that fail with a transient error are retried (:mod:`cltt.files.retry`), then StorageError is raised.

    Raises DataError if the shards are missing, incomplete, damaged, or of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        index = checks.read_index(self.path)
        self.num_frames: int = index["counts"]["frames"]
        self.num_clips: int = index["counts"]["clips"]
        self.fingerprint: str = index["fingerprint"]
        self.label_names: list[str] = index["label_names"]
        self.split_names: list[str] = index["split_names"]
        self.settings: dict[str, Any] = index["settings"]
        self.root_dir: str = index["root_dir"]
        self.odd: list[str] = index.get("odd", [])
        self.shards: list[dict[str, Any]] = index["shards"]
        self.shard_sizes = np.array([shard["size"] for shard in self.shards], np.int64)
        self._frames, self._clips, self._key_offsets = checks.open_arrays(self.path, index)
        self._parts = checks.open_parts(self.path, index)
        self.has_boxes = layout.BOXES in self._parts
        self._keys = SharedFile(self.path / layout.KEYS, follow=False)
        self._files = _Files(self.path)
        self._gauge = WaitGauge(READS_IN_A_ROW)

    def __repr__(self) -> str:
        """``ShardDataset('shards/home': 12 clips, 3,456 frames, splits train and val, 4 labels)``."""
        splits = f", splits {' and '.join(self.split_names)}" if self.split_names else ""
        labels = f", {counted(len(self.label_names), 'label')}" if self.label_names else ""
        counts = f"{counted(self.num_clips, 'clip')}, {counted(self.num_frames, 'frame')}"
        return f"ShardDataset({str(self.path)!r}: {counts}{splits}{labels})"

    def clip_key(self, clip: int) -> str:
        """The path of the clip's folder or video, relative to the root folder the shards were built from."""
        key = int(self._clips[layout.CLIP_KEY, clip])
        start, stop = self._key_offsets.read(key, key + 2).tolist()
        found = retry(self.path / layout.KEYS, lambda: self._keys.read(stop - start, start))
        checks.check_member(found if found != scan.ROOT_KEY else b"root")
        return os.fsdecode(found)

    def frame_records(self, frame_ids: Any) -> Array:
        """Records of the frames, ``layout.FRAME_DTYPE``: offset, size, crc, shard, width, height."""
        return np.asarray(self._frames[self._check_ids(frame_ids)])

    def frame_name(self, frame_id: int) -> str:
        """The source file's path relative to the root folder; for a video its path and the time: ``a.mp4#t=12.400``.

        It is read from the member's header in the shard.
        """
        records = self.frame_records([frame_id])
        if not checks.records_within(records, self.shard_sizes).all():
            raise self._out_of_bounds(frame_id)
        member = self.read_member(records[0]).name
        times = self.frame_time([frame_id])
        if times is None or np.isnan(times[0]):
            return os.fsdecode(tar.source_path(member))
        return os.fsdecode(scan.moment(member.rpartition(b"/")[0], float(times[0])))

    def read_member(self, record: Any) -> tar.Member:
        """The tar header of the frame of ``record``, which must lie within its shard. DataError if there is none."""
        shard = int(record["shard"])
        try:
            member = tar.read_member(lambda size, at: bytes(self._view(shard, size, at)), int(record["offset"]))
            checks.check_member(member.name)
            return member
        except (OSError, DataError) as error:
            raise DataError(f"{self._files.path(shard)}: {error}; {_REPAIR}") from error

    def frame_time(self, frame_ids: Any) -> Array | None:
        """As :meth:`_ClipTable.frame_time`; DataError if the times are damaged."""
        rows = self._part(layout.TIMES, frame_ids)
        if rows is None:
            return None
        if not checks.times_fit(rows):
            raise DataError(f"{self.path / layout.TIMES} holds values that are no times; {_REPAIR}")
        return rows.reshape(np.shape(frame_ids))

    def frame_boxes(self, frame_ids: Any) -> Array | None:
        """As :meth:`_ClipTable.frame_boxes`; DataError if the boxes are damaged."""
        rows = self._part(layout.BOXES, frame_ids)
        if rows is None:
            return None
        boxes = rows.view("<f4").reshape(-1, 4)
        if not checks.boxes_fit(boxes):
            raise DataError(f"{self.path / layout.BOXES} holds boxes that lie outside their frames; {_REPAIR}")
        return boxes.reshape(*np.shape(frame_ids), 4)

    def _part(self, name: str, frame_ids: Any) -> Array | None:
        ids = self._check_ids(frame_ids)
        return self._parts[name][ids] if name in self._parts else None

    def read_each(self, frame_ids: Any) -> list[bytes | FrameError]:
        """As :meth:`read`, with a FrameError in the place of each frame that is corrupt or missing."""
        ids = self._check_ids(frame_ids)
        unique, places = np.unique(ids, return_inverse=True)
        records = np.asarray(self._frames[unique])
        within = checks.records_within(records, self.shard_sizes)
        if not within.all():
            return self._read_those_within(unique, within, places)
        columns = [records[name].tolist() for name in ("shard", "offset", "size", "crc")]

        def read(part: tuple[int, int]) -> list[bytes | FrameError]:
            return list(self._read_range(unique[slice(*part)], *(column[slice(*part)] for column in columns)))

        parts = list(_neighbours(records))
        each = map_together(read, parts, HELPERS) if self._gauge.slow else list(map(read, parts))
        found = [frame for frames in each for frame in frames]
        return [found[place] for place in places.tolist()]

    def _read_those_within(self, ids: Array, within: Array, places: Array) -> list[bytes | FrameError]:
        """As :meth:`read_each` for ``ids[places]``; ``within``: whose records lie within their shards."""
        found = iter(self.read_each(ids[within]))
        each = [
            next(found) if good else self._out_of_bounds(frame)
            for frame, good in zip(ids.tolist(), within, strict=True)
        ]
        return [each[place] for place in places.tolist()]

    def _clip_text(self, frame_id: int) -> str:
        clip = int(self.clip_of(frame_id))
        try:
            return f"in clip {self.clip_key(clip)!r}"
        except DataError:
            return f"in clip {clip}"

    def _out_of_bounds(self, frame_id: int) -> FrameError:
        reason = f"{self.path / layout.FRAMES}: its record lies outside its shard; {_REPAIR}"
        return FrameError(frame_id, self._clip_text(frame_id), reason)

    def _read_range(
        self, ids: Array, shards: list[int], offsets: list[int], sizes: list[int], crcs: list[int]
    ) -> Iterator[bytes | FrameError]:
        """Read neighbouring frames of one shard by one read; yields each frame, or its error."""
        first = offsets[0]
        try:
            data, problem = self._view(shards[0], offsets[-1] + sizes[-1] - first, first), ""
        except OSError as error:
            data, problem = memoryview(b""), f"cannot be read ({error.strerror})"
        for k, (offset, size, crc) in enumerate(zip(offsets, sizes, crcs, strict=True)):
            frame = data[offset - first : offset - first + size]
            if len(frame) == size and zlib.crc32(frame) == crc:
                yield bytes(frame)
            elif problem:
                yield self._corrupt(int(ids[k]), shards[0], problem)
            else:
                yield self._read_once_more(int(ids[k]))

    def _view(self, shard: int, size: int, offset: int) -> memoryview:
        path = self._files.path(shard)
        return self._gauge.timed(lambda: retry(path, lambda: self._files.view(shard, size, offset)))

    def _read_once_more(self, frame_id: int) -> bytes | FrameError:
        """Read a frame with a wrong CRC again, with its record: a bit may have flipped in memory or on the network."""
        record = self._frames[frame_id]
        shard, offset, size, crc = (int(record[name]) for name in ("shard", "offset", "size", "crc"))
        path = self.path / layout.shard_name(shard)
        frame = retry(path, lambda: SharedFile(path, follow=False).read_uncached(size, offset))
        if len(frame) == size and zlib.crc32(frame) == crc:
            log.warning("%s: frame %d had a wrong CRC, and the right one when it was read again", path, frame_id)
            return frame
        return self._corrupt(frame_id, shard, "cut off" if len(frame) < size else "CRC mismatch")

    def _corrupt(self, frame_id: int, shard: int, problem: str) -> FrameError:
        try:
            name = self.frame_name(frame_id)
        except DataError:
            name = self._clip_text(frame_id)
        return FrameError(frame_id, name, f"{self.path / layout.shard_name(shard)}: {problem}; {_REPAIR}")


_REPAIR = "copy this shard again, or build it again with `cltt build --overwrite`"


def _neighbours(records: Array) -> Iterator[tuple[int, int]]:
    """Ranges of ``records``, sorted by shard and offset, that are read by one read each."""
    if not len(records):
        return
    offsets = records["offset"]
    ends = offsets + records["size"]
    far = (np.diff(records["shard"].astype(np.int64)) != 0) | (offsets[1:] - ends[:-1] > MAX_GAP)
    start = 0
    for stop in [*(np.flatnonzero(far) + 1).tolist(), len(records)]:
        while stop - start > 1 and ends[stop - 1] - offsets[start] > MAX_READ:
            fit = int(np.searchsorted(ends[start:stop], offsets[start] + MAX_READ, side="right"))
            middle = start + max(1, fit)
            yield start, middle
            start = middle
        yield start, stop
        start = stop


def most_open() -> int:
    """The number of shards to keep open: a set may have more shards than a process may open files."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if limit == resource.RLIM_INFINITY else min(MOST, max(FEWEST, limit // SHARE))


class _Files:
    """The files of a set's shards, read by any number of threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._paths: dict[int, Path] = {}
        self._open = lru_cache(most_open())(lambda shard: Descriptor(path / layout.shard_name(shard), follow=False))
        self._threads = threading.local()

    def path(self, shard: int) -> Path:
        """The path of a shard. Paths are kept: making one takes as long as reading a cached frame."""
        return self._paths.get(shard) or self._paths.setdefault(shard, self._path / layout.shard_name(shard))

    def view(self, shard: int, size: int, offset: int) -> memoryview:
        """Up to ``size`` bytes at ``offset``, fewer only at the end of the file.

        The next view of the same thread overwrites them: new memory would cost more than the read. After an OSError
        the next call opens the shards again.
        """
        opened = self._open(shard)  # a reference of its own: the file stays open when the cache drops it
        try:
            memory = getattr(self._threads, "memory", memoryview(b""))
            if len(memory) < size:  # a damaged size may be huge: take no more memory than the file has bytes
                size = max(0, min(size, os.fstat(opened.number).st_size - offset))
            if len(memory) < size:
                memory = self._threads.memory = memoryview(bytearray(size))
            return _read_into(memory[:size], opened.number, offset, self.path(shard))
        except OSError:
            self._open.cache_clear()
            del opened  # or the traceback would keep the file open
            raise


def _read_into(memory: memoryview, handle: int, offset: int, path: AnyPath) -> memoryview:
    """Fill ``memory`` from ``offset``; returns the part that was filled. ShortRead if the file has more."""
    filled = 0
    while filled < len(memory) and (count := _pread_into(handle, memory[filled:], offset + filled)):
        filled += count
    if filled < len(memory) and offset + filled < os.fstat(handle).st_size:
        raise ShortRead(path)
    return memory[:filled]


def _pread_into(handle: int, memory: memoryview, offset: int) -> int:
    """Read at ``offset`` into ``memory``; returns the number of bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [memory], offset)
    data = os.pread(handle, len(memory), offset)  # macOS before 11
    memory[: len(data)] = data
    return len(data)
