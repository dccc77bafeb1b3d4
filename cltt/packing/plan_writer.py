"""Making the plan of a build: scan the source folder and write which frame goes into which shard.

Arrays are written in pieces, so the plan of a hundred million frames costs no more memory than that of ten.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from cltt.config import require
from cltt.errors import SettingsError
from cltt.files import atomic, npy
from cltt.packing.labels import check_labels
from cltt.packing.plan import NOTES, PLAN_DTYPE, PLAN_INFO, VIDEO_OFFSETS, VIDEOS, Plan
from cltt.packing.settings import BuildSettings
from cltt.shards import layout, tar
from cltt.source import clips, scan, videos
from cltt.source.names import HOLES, choice_of, frame_number
from cltt.source.odd import Odd, merge_odd

WRITE_FRAMES = 8192  # frames held before they are written


class _Columns:
    """The files of a plan under way: grow by one clip at a time."""

    def __init__(self, folder: Path, shard_size: int, files: contextlib.ExitStack) -> None:
        self._names: IO[bytes] = files.enter_context((folder / "names.bin").open("wb"))
        self._keys: IO[bytes] = files.enter_context((folder / layout.KEYS).open("wb"))
        self._frames = self._npy(folder / layout.FRAMES, PLAN_DTYPE, files)
        self._key_offsets = self._npy(folder / layout.KEY_OFFSETS, np.dtype("<i8"), files)
        self._videos: IO[bytes] = files.enter_context((folder / VIDEOS).open("wb"))
        self._video_offsets = self._npy(folder / VIDEO_OFFSETS, np.dtype("<i8"), files)
        self._shards = self._npy(folder / "shards.npy", np.dtype("<i8"), files)
        self._shard_size = shard_size
        self._shard_bytes = 0
        self._rows: list[tuple[int, int, int, int, float, int, bool]] = []
        self.bytes = 0
        self.largest = 0
        self.frames = 0
        self.clips = 0
        self.shards = 0
        self.has_times = False

    @staticmethod
    def _npy(path: Path, dtype: np.dtype[Any], files: contextlib.ExitStack) -> npy.NpyWriter:
        writer = npy.NpyWriter(files.enter_context(path.open("wb")), dtype)
        files.callback(writer.close)
        return writer

    def add(self, clip: scan.SourceClip, split_gaps: bool) -> None:
        self._key_offsets.write(np.array([self._keys.tell()]))
        self._keys.write(clip.key)
        self._video_offsets.write(np.array([self._videos.tell()]))
        self._videos.write(clip.video)
        self.has_times |= bool(clip.video)
        number = None
        for frame in clip.frames:
            last, number = number, frame_number(frame.name) if split_gaps else None
            jumps = last is not None and number is not None and number not in (last, last + 1)
            self._start_shard_if_full(max(0, frame.size))
            place = self._names.tell()
            gap = jumps or frame.begins
            self._rows.append((frame.size, frame.mark, frame.entry, place, frame.time, self.clips, gap))
            self._names.write(frame.name)
            self.bytes += max(0, frame.size)
            self.largest = max(self.largest, 0 if clip.video else frame.size)
            self.frames += 1
            if len(self._rows) == WRITE_FRAMES:
                self._flush()
        self.clips += 1

    def _start_shard_if_full(self, size: int) -> None:
        member = tar.BLOCK + size + tar.padding(size)
        if self.frames == 0 or self._shard_bytes + member > self._shard_size:
            self._shards.write(np.array([self.frames]))
            self._shard_bytes = 0
            self.shards += 1
        self._shard_bytes += member

    def _flush(self) -> None:
        self._frames.write(np.array(self._rows, PLAN_DTYPE))
        self._rows.clear()

    def finish(self) -> None:
        self._rows.append((0, 0, 0, self._names.tell(), 0, self.clips, False))  # a sentinel: where the last name ends
        self._flush()
        self._key_offsets.write(np.array([self._keys.tell()]))
        self._video_offsets.write(np.array([self._videos.tell()]))
        self._shards.write(np.array([self.frames]))


def _write_notes(file: IO[str], skipped: list[tuple[bytes, str]], notes: Iterable[tuple[bytes, str, str]] = ()) -> None:
    for path, what, reason in [*((path, "skipped", reason) for path, reason in skipped), *notes]:
        file.write(json.dumps([os.fsdecode(path), what, reason]) + "\n")
    skipped.clear()


def make_plan(root_dir: str, folder: Path, settings: dict[str, Any]) -> None:
    """Scan ``root_dir`` and write the plan of its shards into ``folder``, which appears only when whole.

    Raises SettingsError if there is no frame at all or no clip gets a label that should, DataError for a folder or file
    that cannot be read; ``folder`` is not there then.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with atomic.writing(folder):
            temporary.mkdir(parents=True)
            _write_plan(root_dir, temporary, settings)
        check_labels(Plan(temporary), settings)
        with ThreadPoolExecutor(len(os.listdir(temporary))) as pool:  # together: the disk can take them together
            list(pool.map(atomic.flush, temporary.iterdir()))
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    atomic.flush(folder.parent)


def _write_plan(root_dir: str, folder: Path, settings: dict[str, Any]) -> None:
    root = scan.check_root(root_dir)
    with contextlib.ExitStack() as files, ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
        columns = _Columns(folder, settings["shard_size"], files)
        notes = files.enter_context((folder / NOTES).open("w"))
        found = scan.scan_folders(root, pool, choice_of(settings))
        odd: list[Odd] = []
        for clip, about, strange in clips.list_clips(found, pool, videos.sampling_of(settings)):
            if clip.frames:
                columns.add(clip, settings["split_gaps"])
            _write_notes(notes, found.skipped, about)
            odd = merge_odd([*odd, *strange]) if strange else odd
        _write_notes(notes, found.skipped)
        odd = merge_odd([*odd, *found.odd])
        if settings["split_gaps"]:
            odd = [one for one in odd if one.what != HOLES]
        columns.finish()
    if columns.frames == 0:
        chosen = " that --include and --exclude choose" if {"include", "exclude"} & settings.keys() else ""
        raise SettingsError(
            f"no frames under {root_dir!r}{chosen}: give the folder that holds videos, or folders with one image file "
            "a frame"
        )
    require(
        columns.has_times or settings["resize_short"] is not None or settings["quality"] == BuildSettings.quality,
        f"quality is {settings['quality']}, but frames are stored as they are; give resize_short too, or leave it out",
    )
    names = ("frames", "clips", "shards", "bytes", "largest", "has_times")
    counts = {name: getattr(columns, name) for name in names}
    atomic.write_json(folder / PLAN_INFO, {"root_dir": root_dir, "settings": settings, **counts, "odd": odd})


def regroup(plan: Plan, settings: dict[str, Any]) -> Plan:
    """``plan`` with other labels and splits: they change nothing that is packed. Raises as :func:`make_plan` does."""
    check_labels(plan, settings)
    info = json.loads((plan.folder / PLAN_INFO).read_text())
    atomic.write_json(plan.folder / PLAN_INFO, {**info, "settings": settings})
    return Plan(plan.folder)
