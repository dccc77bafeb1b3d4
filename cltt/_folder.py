"""Finding the broken files of a plain folder of clips, and cutting its clips there as a build of shards does."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from cltt import format
from cltt.errors import DataError
from cltt.files import threads
from cltt.source import image, scan

Array = np.ndarray[Any, Any]
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
    broken: dict[str, str] = {}
    bar = tqdm(total=len(files), desc="checking files", unit="file", unit_scale=True, delay=2, leave=False)
    with ThreadPoolExecutor(CHECK_THREADS) as pool, bar:
        checked = threads.ordered_map(pool, partial(_check_piece, root), _pieces(files), 2 * CHECK_THREADS)
        done = 0
        for found, reasons in checked:
            records[done : done + len(found)] = found
            broken |= reasons
            done += len(found)
            bar.update(len(found))
    if len(broken) == len(files):
        raise DataError(f"not one of the {len(files)} files under {os.fsdecode(root)!r} is a whole picture")
    return records, broken


def _pieces(files: Iterable[tuple[bytes, int]]) -> Iterator[list[tuple[bytes, int]]]:
    rest = iter(files)
    while piece := list(islice(rest, CHECK_FILES)):
        yield piece


def _check_piece(root: bytes, files: list[tuple[bytes, int]]) -> tuple[Array, dict[str, str]]:
    """As :func:`check_files` for some files, by path and size."""
    records = np.zeros(len(files), format.FRAME_DTYPE)
    broken = {}
    for record, (path, size) in zip(records, files, strict=True):
        if size == scan.DANGLING:
            broken[os.fsdecode(path)] = "symbolic link that leads nowhere"
            continue
        try:
            with open(os.path.join(root, path), "rb") as file:
                note_facts(record, image.as_stored(file.read()))
        except image.BrokenPicture as error:
            broken[os.fsdecode(path)] = str(error)
        except OSError as error:
            raise DataError(f"cannot read {os.fsdecode(os.path.join(root, path))!r}: {error.strerror}") from error
    return records, broken


def cut_clips(lengths: list[int], good: Array) -> Array:
    """Clip rows [format.CLIP_ROWS, clips] of folders with ``lengths`` files, cut at those not ``good`` [files].

    A clip is what lies between two cuts of a folder; CLIP_KEY is the number of its folder.
    """
    folders = np.repeat(np.arange(len(lengths)), lengths)[good]
    holes = np.cumsum(~good)[good]  # a clip begins where this grew since the last good frame, and in each folder
    first = np.flatnonzero(np.diff(folders, prepend=-1).astype(bool) | np.diff(holes, prepend=-1).astype(bool))
    clips = np.arange(len(first))
    rows = np.full((format.CLIP_ROWS, len(first)), -1, np.int64)
    rows[format.CLIP_FIRST] = first
    rows[format.CLIP_LENGTH] = np.diff(first, append=len(folders))
    rows[format.CLIP_KEY] = folders[first]
    rows[format.CLIP_PART] = clips - np.searchsorted(folders[first], folders[first])
    return rows
