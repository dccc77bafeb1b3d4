"""A folder of clip folders and videos, read with the interface of shards (:class:`FolderDataset`)."""

from __future__ import annotations

import hashlib
import itertools
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cltt.errors import DataError, FrameError, InvalidImage, SettingsError
from cltt.files import maps
from cltt.files.retry import retry
from cltt.shards import layout
from cltt.shards.clip_table import Array, ClipCutter, _ClipTable
from cltt.shards.dataset import ShardDataset
from cltt.source import clips, image, scan, videos
from cltt.source.odd import odd_lines


class FolderDataset(_ClipTable):
    """A folder of clips, read like a :class:`ShardDataset` without building shards; its index is in memory.

    A frame that shards would hold re-encoded is re-encoded on each read, so both give the same pixels. A frame of a
    video is decoded on each read.

    Args:
        root_dir: the folder of clip folders and videos.
        check: read every file first, leave out invalid ones and cut their clips there. The clips are then those of
            shards built with the default settings. Without ``check`` only names are listed, and an invalid file is a
            FrameError when it is read. Of videos only the packets are read, in both cases.
        fps: frames per second taken from videos; None: every frame.
        stream: number of the video stream; None: the main one.

    Attributes:
        invalid: why files were left out, by path relative to the root folder: with ``check`` invalid images; always
            what the packets of videos do not give.

    Raises SettingsError if there are no frames. With ``check``, DataError if all files are invalid or one cannot be
    read.
    """

    def __init__(
        self,
        root_dir: str | os.PathLike[str],
        *,
        check: bool = False,
        fps: float | None = None,
        stream: int | None = None,
    ) -> None:
        self.path = Path(root_dir)
        self.root_dir = os.path.realpath(root_dir)
        self._root = scan.check_root(self.root_dir)
        listed = self._list(videos.Sampling(fps=fps, stream=stream))
        found = [clip for clip, _, _ in listed]
        self._keys = [clip.key for clip in found]
        self._has_videos = any(clip.video for clip in found)
        self._frames = [frame for clip in found for frame in clip.frames]
        self._records: Array | None = None
        self.invalid = {
            os.fsdecode(path): reason
            for _, notes, _ in listed
            for path, what, reason in notes
            if what == "skipped" and reason != videos.OTHER_STREAM
        }
        valid = np.ones(len(self._frames), bool)
        if check:
            self._records, invalid = check_files(self._root, self._frames)
            self.invalid |= invalid
            valid = (self._records["width"] > 0) | np.array([bool(frame.video) for frame in self._frames])
            self._records = self._records[valid]
        begins = np.array([frame.begins for frame in self._frames], bool)
        self._clips = cut_clips([len(clip.frames) for clip in found], valid, begins)
        self._frames = [self._frames[frame] for frame in np.flatnonzero(valid).tolist()]
        self.num_frames, self.num_clips = len(self._frames), self._clips.shape[1]
        self.fingerprint = self._hash(found)
        self.label_names: list[str] = []
        self.split_names: list[str] = []

    def _list(self, sampling: videos.Sampling) -> list[videos.Listed]:
        with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
            folders = scan.scan_folders(self._root, pool)
            listed = list(clips.list_clips(folders, pool, sampling))
        self.odd = odd_lines([*folders.odd, *(odd for _, _, some in listed for odd in some)])
        if not any(clip.frames for clip, _, _ in listed):
            raise SettingsError(
                f"no frames under {os.fsdecode(self._root)!r}; it must hold videos, or folders with one image per frame"
            )
        return listed

    @staticmethod
    def _hash(found: list[scan.SourceClip]) -> str:
        digest = hashlib.sha256()
        for clip in found:
            digest.update(clip.key + b"\0" + clip.video)
            for frame in clip.frames:
                digest.update(b"%b\0%d %d\0" % (frame.name, frame.size, frame.mark))
        return digest.hexdigest()[:32]

    def clip_key(self, clip: int) -> str:
        """The path of the clip's folder or video relative to the root folder."""
        return os.fsdecode(self._keys[int(self._clips[layout.CLIP_KEY, clip])])

    def frame_name(self, frame_id: int) -> str:
        """The file's path relative to the root folder; for a video its path and the time."""
        self._check_ids([frame_id])
        return os.fsdecode(self._frames[frame_id].path)

    def frame_time(self, frame_ids: Any) -> Array | None:
        if not self._has_videos:
            return None
        times = [self._frames[frame].time for frame in self._check_ids(frame_ids).tolist()]
        return np.array(times, np.float64).reshape(np.shape(frame_ids))

    def frame_records(self, frame_ids: Any) -> Array:
        """As :meth:`ShardDataset.frame_records`, with offset and shard 0; all zeros for a frame that is invalid."""
        ids = self._check_ids(frame_ids)
        records = np.zeros(len(ids), layout.FRAME_DTYPE) if self._records is None else np.array(self._records[ids])
        unknown = np.flatnonzero(records["width"] == 0).tolist()
        for place, stored in zip(unknown, self._stored(ids[unknown]), strict=True):
            if isinstance(stored, image.Stored):
                fill_record(records[place], stored)
        return records

    def _stored(self, frame_ids: Array) -> list[image.Stored | FrameError]:
        """Each frame as a shard would store it, or its error. Each video is read in one pass."""
        unique, places = np.unique(frame_ids, return_inverse=True)
        found: list[image.Stored | FrameError] = []
        frames = [(frame, self._frames[frame]) for frame in unique.tolist()]
        for key, group in itertools.groupby(frames, lambda one: one[1].key if one[1].video else None):
            some = list(group)
            found += [self._image(*one) for one in some] if key is None else self._video_frames(some)
        return [found[place] for place in places.tolist()]

    def _image(self, frame_id: int, frame: scan.SourceFrame) -> image.Stored | FrameError:
        path = os.path.join(self._root, frame.path)
        try:
            return image.as_stored(retry(path, lambda: image.read_source(path)), verify="header")
        except (InvalidImage, OSError) as error:
            return FrameError(frame_id, os.fsdecode(frame.path), getattr(error, "strerror", None) or str(error))

    def _video_frames(self, frames: list[tuple[int, scan.SourceFrame]]) -> list[image.Stored | FrameError]:
        first = frames[0][1]
        wanted = [(frame.mark, frame.entry) for _, frame in frames]
        try:
            found = list(videos.read_frames(self._root, first.key, first.video, wanted, videos.Sampling()))
        except DataError as error:
            return [FrameError(frame_id, os.fsdecode(frame.path), str(error)) for frame_id, frame in frames]
        return [
            one if isinstance(one, image.Stored) else FrameError(frame_id, os.fsdecode(frame.path), str(one))
            for (frame_id, frame), one in zip(frames, found, strict=True)
        ]

    def read_each(self, frame_ids: Any) -> list[bytes | FrameError]:
        stored = self._stored(self._check_ids(frame_ids))
        return [frame.data if isinstance(frame, image.Stored) else frame for frame in stored]


CHECK_THREADS = 32  # more than cores: they wait for the file system
CHECK_FILES = 32  # files per task of a thread


def fill_record(record: Any, stored: image.Stored) -> None:
    """Set size, CRC, width and height of a frame's ``layout.FRAME_DTYPE`` record."""
    record["size"], record["crc"] = len(stored.data), zlib.crc32(stored.data)
    record["width"], record["height"] = stored.width, stored.height


def check_files(root: bytes, files: list[scan.SourceFrame]) -> tuple[Array, dict[str, str]]:
    """(records of all frames in order; why files are invalid, by path).

    The records of invalid files, and of frames of videos, which are not read, are zeros.
    """
    pieces = (files[start : start + CHECK_FILES] for start in range(0, len(files), CHECK_FILES))
    records = np.zeros(len(files), layout.FRAME_DTYPE)
    invalid: dict[str, str] = {}
    bar = tqdm(
        total=len(files), desc="checking files", unit="file", unit_scale=True, delay=2, leave=False, disable=None
    )
    with ThreadPoolExecutor(CHECK_THREADS) as pool, bar:
        checked = maps.ordered_map(pool, partial(_check_piece, root), pieces, 2 * CHECK_THREADS)
        done = 0
        for some, reasons in checked:
            records[done : done + len(some)] = some
            invalid |= reasons
            done += len(some)
            bar.update(len(some))
    if len(invalid) == len(files):
        raise DataError(f"none of the {len(files)} files under {os.fsdecode(root)!r} is a complete image")
    return records, invalid


def _check_piece(root: bytes, files: list[scan.SourceFrame]) -> tuple[Array, dict[str, str]]:
    """As :func:`check_files`."""
    records = np.zeros(len(files), layout.FRAME_DTYPE)
    invalid = {}
    for record, frame in zip(records, files, strict=True):
        if frame.size == scan.DANGLING:
            invalid[os.fsdecode(frame.path)] = "symbolic link that leads nowhere"
        elif not frame.video:
            path = os.path.join(root, frame.path)
            try:
                with scan.reading(path):
                    fill_record(record, image.as_stored(image.read_source(path)))
            except InvalidImage as error:
                invalid[os.fsdecode(frame.path)] = str(error)
    return records, invalid


def cut_clips(lengths: list[int], valid: Array, begins: Array | None = None) -> Array:
    """The columns of ``clips.npy``, int64 [layout.CLIP_ROWS, clips], for folders with ``lengths`` files.

    A folder is cut at files that are not ``valid``, bool [files], and before those that ``begins`` a part, bool
    [files]. CLIP_KEY is the number of the clip's folder.
    """
    cutter = ClipCutter()
    cutter.add(np.repeat(np.arange(len(lengths)), lengths), valid, begins)
    rows = np.full((layout.CLIP_ROWS, len(cutter.first)), -1, np.int64)
    rows[layout.CLIP_FIRST], rows[layout.CLIP_LENGTH], rows[layout.CLIP_PART] = cutter.columns()
    rows[layout.CLIP_KEY] = np.frombuffer(cutter.folder, np.int64)
    return rows


Dataset = ShardDataset | FolderDataset
