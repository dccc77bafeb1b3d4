"""Bytes of given frames, out of shards (:class:`ShardDataset`) or straight from clip folders (:class:`FolderDataset`).

Reads are ``pread`` calls, not memory-mapped pages: on a network file system a page fault costs a round trip each, and
neighbouring frames come in one read. Every frame's CRC-32 is checked before the frame goes on.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cltt import format
from cltt._folder import check_files, cut_clips, note_facts
from cltt.errors import DataError, FrameError, SettingsError
from cltt.source import image, scan

Array = np.ndarray[Any, Any]
MAX_GAP = 64 << 10  # bytes between two frames that are read and dropped rather than skipped
MAX_READ = 8 << 20  # bytes of one read


class _ClipTable:
    """What both datasets know of clips: lengths, keys, labels and splits.

    Attributes:
        num_frames, num_clips: counts.
        clip_lengths: int64 [clips], frames of each clip.
        clip_offsets: int64 [clips + 1]; clip c holds the frame ids ``clip_offsets[c]`` to ``clip_offsets[c + 1] - 1``.
        label_names: names of the labels; split_names: names of the splits ([]: there are none).
        fingerprint: equal for equal frames in equal clips.
    """

    num_frames: int
    num_clips: int
    fingerprint: str
    label_names: list[str]
    split_names: list[str]
    _clips: Array  # [format.CLIP_ROWS, clips]

    @cached_property
    def clip_lengths(self) -> Array:
        return np.array(self._clips[format.CLIP_LENGTH])

    @cached_property
    def clip_offsets(self) -> Array:
        return np.concatenate([[0], np.cumsum(self.clip_lengths)])

    @cached_property
    def labels(self) -> Array:
        """Number of each clip's label in ``label_names``, int64 [clips]; -1: none."""
        return np.array(self._clips[format.CLIP_LABEL])

    def split_clips(self, name: str) -> Array:
        """Ids of the clips of one split, int64; SettingsError for a split that is not there."""
        if name not in self.split_names:
            known = ", ".join(self.split_names) or "none; build the shards with --splits"
            raise SettingsError(f"there is no split {name!r}; the splits are: {known}")
        return np.flatnonzero(self._clips[format.CLIP_SPLIT] == self.split_names.index(name)).astype(np.int64)

    def clip_part(self, clip: int) -> int:
        """0 for a whole folder or its first part, 1 for what follows its first hole, and so on."""
        return int(self._clips[format.CLIP_PART, clip])

    def clip_of(self, frame_ids: Any) -> Array:
        """The clip of each frame, int64 of the same shape."""
        return np.searchsorted(self.clip_offsets, np.asarray(frame_ids), side="right").astype(np.int64) - 1

    def _check_ids(self, frame_ids: Any) -> Array:
        ids = np.asarray(frame_ids, np.int64).reshape(-1)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_frames):
            raise IndexError(f"frame ids {ids.min()}..{ids.max()}; they must be in 0..{self.num_frames - 1}")
        return ids

    def read_each(self, frame_ids: Any) -> list[bytes | FrameError]:
        raise NotImplementedError

    def read(self, frame_ids: Any) -> list[bytes]:
        """The JPEG bytes of each frame, in the order asked; repeats are allowed, and so are many threads.

        Raises FrameError for the first frame that is damaged or missing, IndexError for an id that does not exist.
        """
        frames = self.read_each(frame_ids)
        for frame in frames:
            if isinstance(frame, FrameError):
                raise frame
        return frames  # type: ignore[return-value]


class ShardDataset(_ClipTable):
    """A complete set of shards, opened for reading by any number of threads.

    Raises DataError if the shards are not there, not complete, of another version, or their index is cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        index = format.read_index(self.path)
        self.num_frames: int = index["counts"]["frames"]
        self.num_clips: int = index["counts"]["clips"]
        self.fingerprint: str = index["fingerprint"]
        self.label_names: list[str] = index["label_names"]
        self.split_names: list[str] = index["split_names"]
        self.settings: dict[str, Any] = index["settings"]
        self.root_dir: str = index["root_dir"]
        self.shards: list[dict[str, Any]] = index["shards"]
        self._check_sizes(index["files"])
        self._frames = np.load(self.path / format.FRAMES, mmap_mode="r")
        self._clips = np.load(self.path / format.CLIPS, mmap_mode="r")
        self._key_offsets = np.load(self.path / format.KEY_OFFSETS, mmap_mode="r")
        self._files = _Files(self.path)

    def _check_sizes(self, files: dict[str, Any]) -> None:
        for name in format.INDEX_FILES:
            try:
                size = (self.path / name).stat().st_size
            except FileNotFoundError:
                raise DataError(f"{self.path / name} is missing; build the shards again with --overwrite") from None
            if size != files[name]["size"]:
                raise DataError(
                    f"{self.path / name} has {size} bytes, {files[name]['size']} were written; "
                    "copy it again or build the shards again with --overwrite"
                )

    def clip_key(self, clip: int) -> str:
        """The clip folder's path relative to the root folder the shards were built from."""
        key = int(self._clips[format.CLIP_KEY, clip])
        start, stop = (int(offset) for offset in self._key_offsets[key : key + 2])
        with (self.path / format.KEYS).open("rb") as file:
            file.seek(start)
            return os.fsdecode(file.read(stop - start))

    def frame_facts(self, frame_ids: Any) -> Array:
        """Records (``format.FRAME_DTYPE``: offset, size, crc, shard, width, height) of the frames."""
        return np.asarray(self._frames[self._check_ids(frame_ids)])

    def frame_name(self, frame_id: int) -> str:
        """The source file's path relative to the root folder, from the member's header in the tar."""
        record = self.frame_facts([frame_id])[0]
        shard = int(record["shard"])
        try:
            member = format.read_member_name(lambda size, at: self._files.pread(shard, size, at), int(record["offset"]))
        except (OSError, DataError) as error:
            raise DataError(f"{self.path / format.shard_name(shard)}: {error}; {_REPAIR}") from error
        return os.fsdecode(format.source_path(member))

    def read_each(self, frame_ids: Any) -> list[bytes | FrameError]:
        """As :meth:`read`, with a FrameError in the place of each frame that is damaged or missing."""
        ids = self._check_ids(frame_ids)
        unique, places = np.unique(ids, return_inverse=True)
        found: list[bytes | FrameError] = []
        records = np.asarray(self._frames[unique])
        columns = [records[name].tolist() for name in ("shard", "offset", "size", "crc")]
        for start, stop in _neighbours(records):
            found += self._read_range(unique[start:stop], *(column[start:stop] for column in columns))
        return [found[place] for place in places.tolist()]

    def _read_range(
        self, ids: Array, shards: list[int], offsets: list[int], sizes: list[int], crcs: list[int]
    ) -> Iterator[bytes | FrameError]:
        """Frames that lie close together in one shard, in one read."""
        first = offsets[0]
        try:
            data, problem = self._files.view(shards[0], offsets[-1] + sizes[-1] - first, first), "cut off"
        except OSError as error:
            data, problem = memoryview(b""), f"cannot be read ({error.strerror})"
        for k, (offset, size, crc) in enumerate(zip(offsets, sizes, crcs, strict=True)):
            frame = data[offset - first : offset - first + size]
            if len(frame) == size and zlib.crc32(frame) == crc:
                yield bytes(frame)
            else:
                yield self._damaged(int(ids[k]), shards[0], problem if len(frame) < size else "CRC mismatch")

    def _damaged(self, frame_id: int, shard: int, problem: str) -> FrameError:
        try:
            name = self.frame_name(frame_id)
        except DataError:
            name = f"in clip {self.clip_key(int(self.clip_of(frame_id)))!r}"
        return FrameError(frame_id, name, f"{self.path / format.shard_name(shard)}: {problem}; {_REPAIR}")


_REPAIR = "copy this shard again, or build it again with tools/build_shards.py --overwrite"


def _neighbours(records: Array) -> Iterator[tuple[int, int]]:
    """Ranges of ``records`` (in the order of the shards) that one read should cover."""
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


class _Files:
    """Open shards by number; a file is opened once, by whichever thread comes first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handles: dict[int, int] = {}
        self._lock = threading.Lock()
        self._threads = threading.local()

    def pread(self, shard: int, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes at ``offset``: fewer only at the end of the file."""
        return bytes(self._read_into(memoryview(bytearray(size)), shard, offset))

    def view(self, shard: int, size: int, offset: int) -> memoryview:
        """As :meth:`pread`, in memory that this thread's next view overwrites: fresh memory costs more than reading."""
        memory = getattr(self._threads, "memory", memoryview(b""))
        if len(memory) < size:
            memory = self._threads.memory = memoryview(bytearray(size))
        return self._read_into(memory[:size], shard, offset)

    def _read_into(self, memory: memoryview, shard: int, offset: int) -> memoryview:
        handle, filled = self._handle(shard), 0
        while filled < len(memory) and (count := _pread_into(handle, memory[filled:], offset + filled)):
            filled += count
        return memory[:filled]

    def _handle(self, shard: int) -> int:
        handle = self._handles.get(shard)
        if handle is not None:
            return handle
        with self._lock:
            if shard not in self._handles:
                self._handles[shard] = os.open(self._path / format.shard_name(shard), os.O_RDONLY)
            return self._handles[shard]

    def __del__(self) -> None:
        for handle in self._handles.values():
            os.close(handle)


def _pread_into(handle: int, memory: memoryview, offset: int) -> int:
    """Read at ``offset`` into ``memory``; returns the number of bytes."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [memory], offset)
    data = os.pread(handle, len(memory), offset)  # macOS before 11
    memory[: len(data)] = data
    return len(data)


class FolderDataset(_ClipTable):
    """The same interface over a plain folder of clips: nothing is built, the index is held in memory.

    Frames that shards would hold re-encoded are re-encoded on each read, so both give the same pixels.

    Args:
        root_dir: the folder of clip folders.
        check: read every file first, leave out those that are no whole picture and cut their clips there: the clips are
            then those of shards built with the default settings. Without it a scan of the names is enough, and a
            broken file is a FrameError when it is read.

    Attributes:
        broken: with ``check``, why each file was left out, by its path relative to the root folder.

    Raises SettingsError if there are no frames; with ``check``, DataError if no file is a whole picture or one cannot
    be read.
    """

    def __init__(self, root_dir: str | os.PathLike[str], *, check: bool = False) -> None:
        self.path = Path(root_dir)
        self.root_dir = os.path.realpath(root_dir)
        self._root = scan.check_root(self.root_dir)
        with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
            clips = list(scan.scan_clips(scan.scan_folders(self._root, pool), pool))
        if not clips:
            raise SettingsError(f"no frames under {os.fsdecode(self._root)!r}; its folders must hold one image a frame")
        self._keys = [clip.key for clip in clips]
        self._names = [frame.name for clip in clips for frame in clip.frames]
        self._facts: Array | None = None
        self.broken: dict[str, str] = {}
        good = np.ones(len(self._names), bool)
        if check:
            self._facts, self.broken = check_files(self._root, clips)
            good = self._facts["width"] > 0
            self._facts = self._facts[good]
            self._names = [self._names[frame] for frame in np.flatnonzero(good).tolist()]
        self._clips = cut_clips([len(clip.frames) for clip in clips], good)
        self.num_frames, self.num_clips = len(self._names), self._clips.shape[1]
        self.fingerprint = self._hash(clips)
        self.label_names: list[str] = []
        self.split_names: list[str] = []

    @staticmethod
    def _hash(clips: list[scan.SourceClip]) -> str:
        digest = hashlib.sha256()
        for clip in clips:
            digest.update(clip.key + b"\0")
            for frame in clip.frames:
                digest.update(b"%b\0%d %d\0" % (frame.name, frame.size, frame.mtime_ns))
        return digest.hexdigest()[:32]

    def clip_key(self, clip: int) -> str:
        """The clip folder's path relative to the root folder."""
        return os.fsdecode(self._key(clip))

    def _key(self, clip: int) -> bytes:
        return self._keys[int(self._clips[format.CLIP_KEY, clip])]

    def frame_name(self, frame_id: int) -> str:
        """The file's path relative to the root folder."""
        self._check_ids([frame_id])
        return os.fsdecode(scan.join_key(self._key(int(self.clip_of(frame_id))), self._names[frame_id]))

    def frame_facts(self, frame_ids: Any) -> Array:
        """Records as those of :meth:`ShardDataset.frame_facts`; width and height from the files, zeros for the rest."""
        ids = self._check_ids(frame_ids)
        if self._facts is not None:
            return np.asarray(self._facts[ids])
        records = np.zeros(len(ids), format.FRAME_DTYPE)
        for record, frame_id in zip(records, ids.tolist(), strict=True):
            stored = self._stored(frame_id)
            if isinstance(stored, image.Stored):
                note_facts(record, stored)
        return records

    def _stored(self, frame_id: int) -> image.Stored | FrameError:
        name = self.frame_name(frame_id)
        try:
            return image.as_stored((self._root_path / name).read_bytes(), verify="header")
        except (image.BrokenPicture, OSError) as error:
            return FrameError(frame_id, name, getattr(error, "strerror", None) or str(error))

    @property
    def _root_path(self) -> Path:
        return Path(self.root_dir)

    def read_each(self, frame_ids: Any) -> list[bytes | FrameError]:
        """As :meth:`read`, with a FrameError in the place of each file that is gone or no picture."""
        stored = {frame_id: self._stored(frame_id) for frame_id in set(self._check_ids(frame_ids).tolist())}
        return [
            frame.data if isinstance(frame := stored[frame_id], image.Stored) else frame
            for frame_id in self._check_ids(frame_ids).tolist()
        ]
