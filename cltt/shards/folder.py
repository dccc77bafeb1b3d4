"""A plain folder of clip folders, read like shards."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cltt.errors import DataError, FrameError, InvalidImage, SettingsError
from cltt.files import threads
from cltt.files.patience import IO_PATIENCE, Patience
from cltt.shards import format
from cltt.shards.clip_table import Array, ClipCutter, _ClipTable
from cltt.shards.dataset import ShardDataset
from cltt.source import image, scan


class FolderDataset(_ClipTable):
    """The same interface over a plain folder of clips: nothing is built, the index is held in memory.

    Frames that shards would hold re-encoded are re-encoded on each read, so both give the same pixels.

    Args:
        root_dir: the folder of clip folders.
        check: read every file first, leave out those that are no whole picture and cut their clips there: the clips are
            then those of shards built with the default settings. Without it a scan of the names is enough, and a
            invalid file is a FrameError when it is read.
        io_patience: seconds for which reads that fail in a way that passes are tried again.

    Attributes:
        invalid: with ``check``, why each file was left out, by its path relative to the root folder.

    Raises SettingsError if there are no frames; with ``check``, DataError if no file is a whole picture or one cannot
    be read.
    """

    def __init__(
        self, root_dir: str | os.PathLike[str], *, check: bool = False, io_patience: float = IO_PATIENCE
    ) -> None:
        self.path = Path(root_dir)
        self.patience = Patience(io_patience)
        self.root_dir = os.path.realpath(root_dir)
        self._root = scan.check_root(self.root_dir)
        with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
            clips = list(scan.scan_clips(scan.scan_folders(self._root, pool, self.patience), pool))
        if not clips:
            raise SettingsError(f"no frames under {os.fsdecode(self._root)!r}; its folders must hold one image a frame")
        self._keys = [clip.key for clip in clips]
        self._names = [frame.name for clip in clips for frame in clip.frames]
        self._facts: Array | None = None
        self.invalid: dict[str, str] = {}
        valid = np.ones(len(self._names), bool)
        if check:
            self._facts, self.invalid = check_files(self._root, clips)
            valid = self._facts["width"] > 0
            self._facts = self._facts[valid]
            self._names = [self._names[frame] for frame in np.flatnonzero(valid).tolist()]
        self._clips = cut_clips([len(clip.frames) for clip in clips], valid)
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
            path = self._root_path / name
            data = self.patience.ask(path, lambda: image.read_source(path))
            return image.as_stored(data, verify="header")
        except (InvalidImage, OSError) as error:
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


CHECK_THREADS = 32  # they wait for the file system, and decode
CHECK_FILES = 32  # files checked by one thread at a time


def note_facts(record: Any, stored: image.Stored) -> None:
    """Write what is known of a frame that lies in no shard into its ``format.FRAME_DTYPE`` record."""
    record["size"], record["crc"] = len(stored.data), zlib.crc32(stored.data)
    record["width"], record["height"] = stored.width, stored.height


def check_files(root: bytes, clips: list[scan.SourceClip]) -> tuple[Array, dict[str, str]]:
    """(records of all files in order, zeros for those that are no whole picture; why they are none, by path)."""
    files = [(scan.join_key(clip.key, frame.name), frame.size) for clip in clips for frame in clip.frames]
    records = np.zeros(len(files), format.FRAME_DTYPE)
    invalid: dict[str, str] = {}
    bar = tqdm(
        total=len(files), desc="checking files", unit="file", unit_scale=True, delay=2, leave=False, disable=None
    )
    with ThreadPoolExecutor(CHECK_THREADS) as pool, bar:
        checked = threads.ordered_map(pool, partial(_check_piece, root), _pieces(files), 2 * CHECK_THREADS)
        done = 0
        for found, reasons in checked:
            records[done : done + len(found)] = found
            invalid |= reasons
            done += len(found)
            bar.update(len(found))
    if len(invalid) == len(files):
        raise DataError(f"not one of the {len(files)} files under {os.fsdecode(root)!r} is a whole picture")
    return records, invalid


def _pieces(files: Iterable[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
    rest = iter(files)
    while piece := list(islice(rest, CHECK_FILES)):
        yield piece


def _check_piece(root: bytes, files: list[tuple[bytes, int]]) -> tuple[Array, dict[str, str]]:
    """As :func:`check_files` for some files, by path and size."""
    records = np.zeros(len(files), format.FRAME_DTYPE)
    invalid = {}
    for record, (path, size) in zip(records, files, strict=True):
        if size == scan.DANGLING:
            invalid[os.fsdecode(path)] = "symbolic link that leads nowhere"
            continue
        try:
            note_facts(record, image.as_stored(image.read_source(os.path.join(root, path))))
        except InvalidImage as error:
            invalid[os.fsdecode(path)] = str(error)
        except OSError as error:
            raise DataError(f"cannot read {os.fsdecode(os.path.join(root, path))!r}: {error.strerror}") from error
    return records, invalid


def cut_clips(lengths: list[int], valid: Array) -> Array:
    """Clip rows [format.CLIP_ROWS, clips] of folders with ``lengths`` files, cut at those not ``valid`` [files].

    CLIP_KEY is the number of the clip's folder.
    """
    cutter = ClipCutter()
    cutter.add(np.repeat(np.arange(len(lengths)), lengths), valid)
    rows = np.full((format.CLIP_ROWS, len(cutter.first)), -1, np.int64)
    rows[format.CLIP_FIRST], rows[format.CLIP_LENGTH], rows[format.CLIP_PART] = cutter.columns()
    rows[format.CLIP_KEY] = np.frombuffer(cutter.folder, np.int64)
    return rows


Dataset = ShardDataset | FolderDataset
