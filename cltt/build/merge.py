"""From the parts of all shards to the index: cut clips where frames are missing, give labels and splits, publish."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cltt.build.labels import label_clips, parse_splits, split_clips
from cltt.build.pack import read_part
from cltt.build.plan import Plan
from cltt.errors import DataError
from cltt.files import atomic, npy
from cltt.shards import format

PART_DTYPE = np.dtype([*format.FRAME_FIELDS, ("good", "?")])  # what _pack.PART_ROW packs


# ---- clips and frames


class _Clips:
    """Clips as they are found, in growing columns: one a folder, or several parts of it where frames are missing."""

    def __init__(self) -> None:
        self.columns = [array("q") for _ in range(3)]  # first frame, key number, part
        self.keys: list[bytes] = []
        self._folder = -1

    def start(self, frame: int, folder: int, key: bytes) -> None:
        """A clip begins at ``frame``; it is the next part of the last one if it is of the same ``folder``."""
        same = folder == self._folder
        if not same:
            self.keys.append(key)
            self._folder = folder
        part = self.columns[2][-1] + 1 if same else 0
        for column, value in zip(self.columns, (frame, len(self.keys) - 1, part), strict=True):
            column.append(value)


def _frame_rows(plan: Plan, out: Path, clips: _Clips) -> Iterator[np.ndarray[Any, Any]]:
    """The index records of all good frames, shard by shard; ``clips`` grows along the way."""
    written, last_folder, hole = 0, -1, False
    for shard in range(plan.num_shards):
        frames = plan.shard_frames(shard)
        rows = np.frombuffer(read_part(out, shard)[1], PART_DTYPE)
        planned = np.array(plan.frames[frames.start : frames.stop])
        good = np.flatnonzero(rows["good"])
        folders = planned["clip"][good].astype(np.int64)
        breaks = np.cumsum(~rows["good"] | planned["gap"])  # a clip begins where this grew since the last good frame
        at, before = breaks[good], np.concatenate([[0], breaks[good][:-1]])
        starts = (at != before) | (folders != np.concatenate([[last_folder], folders[:-1]]))
        if len(good):
            starts[0] |= hole
            keys = plan.keys(int(folders[0]), int(folders[-1]) + 1)
            for k in np.flatnonzero(starts).tolist():
                clips.start(written + k, int(folders[k]), keys[folders[k] - folders[0]])
            last_folder = int(folders[-1])
        hole = bool(breaks[-1] > (at[-1] if len(good) else 0))
        written += len(good)
        yield rows[good][list(format.FRAME_DTYPE.names or ())]


def _clip_matrix(clips: _Clips, num_frames: int, settings: dict[str, Any]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """(clips.npy [6, clips], label names)."""
    first, key, part = (np.frombuffer(column, np.int64) for column in clips.columns)
    names = [os.fsdecode(key) for key in clips.keys]
    labels, label_names = label_clips(names, settings)
    splits = split_clips(names, settings)
    rows = [first, np.diff(first, append=num_frames), key, part, labels[key], splits[key]]
    return np.ascontiguousarray(np.stack(rows)), label_names


def _write_index_files(plan: Plan, out: Path) -> tuple[int, int, list[str]]:
    """Write frames.npy, clips.npy and the keys; (frames, clips, label names)."""
    clips = _Clips()
    with atomic.published(out / format.FRAMES, sync=False) as file:
        writer = npy.NpyWriter(file, format.FRAME_DTYPE)
        for rows in _frame_rows(plan, out, clips):
            writer.write(rows)
        writer.close()
    if writer.rows == 0:
        raise DataError(f"not one of the {plan.num_frames} files under {plan.root_dir!r} is a whole picture")
    matrix, label_names = _clip_matrix(clips, writer.rows, plan.settings)
    with atomic.published(out / format.CLIPS, sync=False) as file:
        np.save(file, matrix)
    with atomic.published(out / format.KEYS, sync=False) as file:
        file.write(b"".join(clips.keys))
    with atomic.published(out / format.KEY_OFFSETS, sync=False) as file:
        np.save(file, np.cumsum([0, *map(len, clips.keys)], dtype=np.int64))
    return writer.rows, matrix.shape[1], label_names


# ---- report and index


def _notes(plan: Plan, out: Path) -> Iterator[tuple[str, str, str]]:
    """(path, "skipped" or "reencoded", reason), file by file."""
    for path, reason in plan.skipped():
        yield path, "skipped", reason
    for shard in range(plan.num_shards):
        yield from read_part(out, shard)[0]["notes"]


def _write_report(plan: Plan, out: Path) -> dict[str, dict[str, int]]:
    """Write report.json a line a file; counts by reason of what was skipped and re-encoded."""
    counts: dict[str, Counter[str]] = {"skipped": Counter(), "reencoded": Counter()}
    with atomic.published(out / format.REPORT, sync=False) as file:
        file.write(b'{"files": [')
        for number, (path, what, reason) in enumerate(_notes(plan, out)):
            counts[what][reason] += 1
            line = json.dumps({"file": path, "what": what, "reason": reason})
            file.write((",\n" if number else "\n").encode() + line.encode())
        totals = {what: dict(sorted(counter.items())) for what, counter in counts.items()}
        file.write(f'\n], "counts": {json.dumps(totals)}}}\n'.encode())
    return totals


def merge(plan: Plan, out: Path) -> dict[str, Any]:
    """Write the index of finished shards into ``out``, ``index.json`` last; returns its contents."""
    frames, clips, label_names = _write_index_files(plan, out)
    counts = _write_report(plan, out)
    shards = []
    for shard in range(plan.num_shards):
        facts = read_part(out, shard)[0]
        shards.append({"name": format.shard_name(shard), "size": facts["size"], "crc": facts["crc"]})
    files = {
        name: {"size": (out / name).stat().st_size, "sha256": atomic.file_sha256(out / name)}
        for name in (*format.INDEX_FILES, format.REPORT)
    }
    content = json.dumps([files[name]["sha256"] for name in format.INDEX_FILES])
    index = {
        "format": format.FORMAT,
        "version": format.VERSION,
        "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:32],
        "root_dir": plan.root_dir,
        "settings": plan.settings,
        "counts": {"frames": frames, "clips": clips, "bytes": sum(shard["size"] for shard in shards), **counts},
        "label_names": label_names,
        "split_names": list(parse_splits(plan.settings["splits"])),
        "shards": shards,
        "files": files,
    }
    atomic.flush(out)  # all that the index speaks of
    atomic.write_json(out / format.INDEX, index)
    return index
