"""Making the plan of a build: scan the source folder and write which frame goes into which shard.

Frames are written in pieces, so the memory needed does not grow with their number.
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
from cltt.packing.plan import NOTES, PLAN_DTYPE, PLAN_INFO, VIDEO_OFFSETS, VIDEOS, Plan, write_strings
from cltt.packing.settings import BuildSettings
from cltt.shards import layout, tar
from cltt.source import clips, scan, videos
from cltt.source.names import HOLES, choice_of, jumps
from cltt.source.odd import Odd, merge_odd

WRITE_FRAMES = 8192  # frames in memory before they are written


class _PlanFiles:
    """Writes the files of a plan, one clip after another."""

    def __init__(self, folder: Path, shard_size: int, files: contextlib.ExitStack) -> None:
        self._folder = folder
        self._names: IO[bytes] = files.enter_context((folder / "names.bin").open("wb"))
        self._frames = npy.NpyWriter(files.enter_context((folder / layout.FRAMES).open("wb")), PLAN_DTYPE)
        self._keys: list[bytes] = []
        self._videos: list[bytes] = []
        self._shard_starts: list[int] = []
        self._shard_size = shard_size
        self._shard_bytes = 0
        self._rows: list[tuple[int, int, int, int, float, int, bool]] = []
        self.frames = 0
        self.bytes = 0
        self.largest = 0
        self.has_times = False

    @property
    def clips(self) -> int:
        return len(self._keys)

    @property
    def shards(self) -> int:
        return len(self._shard_starts)

    def add(self, clip: scan.SourceClip, split_gaps: bool) -> None:
        self.has_times |= bool(clip.video)
        names = [frame.name for frame in clip.frames]
        for frame, jump in zip(clip.frames, jumps(names) if split_gaps else [False] * len(names), strict=True):
            self._start_shard_if_full(max(0, frame.size))
            place = self._names.tell()
            gap = jump or frame.begins
            self._rows.append((frame.size, frame.mark, frame.entry, place, frame.time, self.clips, gap))
            self._names.write(frame.name)
            self.bytes += max(0, frame.size)
            self.largest = max(self.largest, 0 if clip.video else frame.size)
            self.frames += 1
            if len(self._rows) == WRITE_FRAMES:
                self._flush()
        self._keys.append(clip.key)
        self._videos.append(clip.video)

    def _start_shard_if_full(self, size: int) -> None:
        member = tar.BLOCK + size + tar.padding(size)
        if self.frames == 0 or self._shard_bytes + member > self._shard_size:
            self._shard_starts.append(self.frames)
            self._shard_bytes = 0
        self._shard_bytes += member

    def _flush(self) -> None:
        self._frames.write(np.array(self._rows, PLAN_DTYPE))
        self._rows.clear()

    def finish(self) -> None:
        self._rows.append((0, 0, 0, self._names.tell(), 0, self.clips, False))  # tells where the last name ends
        self._flush()
        self._frames.close()
        np.save(self._folder / "shards.npy", np.array([*self._shard_starts, self.frames]))
        write_strings(self._folder, layout.KEYS, layout.KEY_OFFSETS, self._keys)
        write_strings(self._folder, VIDEOS, VIDEO_OFFSETS, self._videos)


def _write_notes(file: IO[str], skipped: list[tuple[bytes, str]], notes: Iterable[tuple[bytes, str, str]] = ()) -> None:
    for path, what, reason in [*((path, "skipped", reason) for path, reason in skipped), *notes]:
        file.write(json.dumps([os.fsdecode(path), what, reason]) + "\n")
    skipped.clear()


def make_plan(root_dir: str, folder: Path, settings: dict[str, Any]) -> None:
    """Scan ``root_dir`` and write the plan of its shards into ``folder``, which is renamed to when complete.

    Raises SettingsError if there are no frames, or ``label_from`` or a table fits nothing, DataError for a folder or
    file that cannot be read; ``folder`` is not made then.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with atomic.writing(folder):
            temporary.mkdir(parents=True)
            _write_plan(root_dir, temporary, settings)
        check_labels(Plan(temporary), settings)
        with ThreadPoolExecutor(len(os.listdir(temporary))) as pool:  # at once: faster on most disks
            list(pool.map(atomic.flush, temporary.iterdir()))
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    atomic.flush(folder.parent)


def _write_plan(root_dir: str, folder: Path, settings: dict[str, Any]) -> None:
    root = scan.check_root(root_dir)
    with contextlib.ExitStack() as files, ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
        plan_files = _PlanFiles(folder, settings["shard_size"], files)
        notes = files.enter_context((folder / NOTES).open("w"))
        found = scan.scan_folders(root, pool, choice_of(settings))
        odd: list[Odd] = []
        for clip, about, strange in clips.list_clips(found, pool, videos.sampling_of(settings)):
            if clip.frames:
                plan_files.add(clip, settings["split_gaps"])
            _write_notes(notes, found.skipped, about)
            odd = merge_odd([*odd, *strange]) if strange else odd
        _write_notes(notes, found.skipped)
        odd = merge_odd([*odd, *found.odd])
        if settings["split_gaps"]:
            odd = [one for one in odd if one.what != HOLES]
        plan_files.finish()
    if plan_files.frames == 0:
        chosen = " that --include and --exclude choose" if {"include", "exclude"} & settings.keys() else ""
        raise SettingsError(
            f"no frames under {root_dir!r}{chosen}: give the folder that holds videos, or folders with one image file "
            "per frame"
        )
    require(
        plan_files.has_times or settings["resize_short"] is not None or settings["quality"] == BuildSettings.quality,
        f"quality is {settings['quality']}, but frames are stored as they are; give resize_short too, or leave it out",
    )
    names = ("frames", "clips", "shards", "bytes", "largest", "has_times")
    counts = {name: getattr(plan_files, name) for name in names}
    atomic.write_json(folder / PLAN_INFO, {"root_dir": root_dir, "settings": settings, **counts, "odd": odd})


def regroup(plan: Plan, settings: dict[str, Any]) -> Plan:
    """``plan`` with other labels, splits and boxes, which change no shard; raises as :func:`make_plan` does."""
    check_labels(plan, settings)
    info = json.loads((plan.folder / PLAN_INFO).read_text())
    atomic.write_json(plan.folder / PLAN_INFO, {**info, "settings": settings})
    return Plan(plan.folder)
