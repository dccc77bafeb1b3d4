"""Merging the parts of all shards into the index: cut clips at missing frames, add labels and splits, publish."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cltt.errors import DataError
from cltt.files import atomic, npy
from cltt.packing.labels import boxes_of, label_clips, odd_tables, split_clips, split_names
from cltt.packing.pack import PART_DTYPE, read_part
from cltt.packing.plan import Plan, write_strings
from cltt.shards import layout
from cltt.shards.clip_table import ClipCutter
from cltt.source.odd import Odd, odd_lines
from cltt.source.videos import READ

# ---- clips and frames


class _Frames:
    """Writes the files of the index that have a row per frame, and cuts the clips."""

    def __init__(self, plan: Plan, out: Path, files: contextlib.ExitStack) -> None:
        self._plan, self._out = plan, out
        self.boxes = boxes_of(plan.settings)
        self.cutter = ClipCutter()
        self._writers = {layout.FRAMES: self._writer(layout.FRAMES, layout.FRAME_DTYPE, files)}
        if plan.has_times:
            self._writers[layout.TIMES] = self._writer(layout.TIMES, np.dtype("<f8"), files)
        if plan.settings["boxes"] is not None:
            self._writers[layout.BOXES] = self._writer(layout.BOXES, np.dtype(layout.BOX_FIELDS), files)

    def _writer(self, name: str, dtype: np.dtype[Any], files: contextlib.ExitStack) -> npy.NpyWriter:
        return npy.NpyWriter(files.enter_context(atomic.published(self._out / name, sync=False)), dtype)

    @property
    def rows(self) -> int:
        return self._writers[layout.FRAMES].rows

    def add(self, shard: int) -> None:
        """Write the rows of the valid frames of a shard, and pass all its frames to the cutter."""
        frames = self._plan.shard_frames(shard)
        rows = np.frombuffer(read_part(self._out, shard)[1], PART_DTYPE)
        planned = np.array(self._plan.frames[frames.start : frames.stop])
        good = rows["good"]
        self.cutter.add(planned["clip"].astype(np.int64), good, planned["gap"])
        self._writers[layout.FRAMES].write(rows[good][list(layout.FRAME_DTYPE.names or ())])
        if layout.TIMES in self._writers:
            self._writers[layout.TIMES].write(planned["time"][good])
        if layout.BOXES in self._writers:
            self._writers[layout.BOXES].write(self._box_rows(shard, rows)[good])

    def _box_rows(self, shard: int, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """BOX_FIELDS [frames] of a shard's planned frames, as :meth:`Boxes.of` gives them; NaN: no box."""
        found = np.full((len(rows), 4), np.nan, "<f4")
        for row, frame in enumerate(self._plan.shard_plan(shard)):
            if rows["good"][row]:
                size = int(rows["full_width"][row]), int(rows["full_height"][row])
                box = self.boxes.of(os.fsdecode(frame.path), *size)
                found[row] = np.nan if box is None else box
        return found.view(layout.BOX_FIELDS)[:, 0]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _write_index_files(plan: Plan, out: Path) -> tuple[dict[str, Any], list[str], list[Odd]]:
    """Write all files of the index but the report; (counts, label names, what looks odd about boxes)."""
    with contextlib.ExitStack() as files:
        frames = _Frames(plan, out, files)
        for shard in range(plan.num_shards):
            frames.add(shard)
        frames.close()
    if frames.rows == 0:
        reasons = Counter(reason for _, what, reason in _notes(plan, out) if what == "skipped").most_common(1)
        why = f" (of {reasons[0][1]}: {reasons[0][0]})" if reasons else ""
        raise DataError(f"not one of the {plan.num_frames} files under {plan.root_dir!r} is a whole picture{why}")
    first, length, part = frames.cutter.columns()
    folders, key = frames.cutter.keys()
    all_keys = plan.keys(0, plan.num_clips)
    keys = [all_keys[folder] for folder in folders.tolist()]
    names = list(map(os.fsdecode, keys))
    labels, label_names = label_clips(names, plan.settings)
    splits = split_clips(names, plan.settings)
    matrix = np.ascontiguousarray(np.stack([first, length, key, part, labels[key], splits[key]]))
    with atomic.published(out / layout.CLIPS, sync=False) as file:
        np.save(file, matrix)
    write_strings(out, layout.KEYS, layout.KEY_OFFSETS, keys)
    counts: dict[str, Any] = {"frames": frames.rows, "clips": matrix.shape[1]}
    if plan.settings["boxes"] is not None:
        counts["boxes"] = {"used": frames.boxes.used, "unused": len(frames.boxes.unused())}
    return counts, label_names, list(frames.boxes.odd())


# ---- report and index


def _notes(plan: Plan, out: Path) -> Iterator[tuple[str, str, str]]:
    """(path, "skipped", "cut", READ or "reencoded", reason) of each noted file."""
    yield from plan.notes()
    for shard in range(plan.num_shards):
        yield from read_part(out, shard)[0]["notes"]


def _odd(plan: Plan, out: Path) -> Iterator[Odd]:
    """What the scan and the packing found odd, and what is odd in the tables of clips."""
    yield from plan.odd
    yield from odd_tables([os.fsdecode(key) for key in plan.keys(0, plan.num_clips)], plan.settings)
    for shard in range(plan.num_shards):
        yield from (Odd(*record) for record in read_part(out, shard)[0].get("odd", ()))


def _write_report(plan: Plan, out: Path, odd: list[str]) -> dict[str, dict[str, int]]:
    """Write report.json, one line per noted file; returns counts by kind of note and reason."""
    counts: dict[str, Counter[str]] = {what: Counter() for what in ("skipped", "cut", READ, "reencoded")}
    with atomic.published(out / layout.REPORT, sync=False) as file:
        file.write(b'{"files": [')
        for number, (path, what, reason) in enumerate(_notes(plan, out)):
            counts[what][reason] += 1
            line = json.dumps({"file": path, "what": what, "reason": reason})
            file.write((",\n" if number else "\n").encode() + line.encode())
        totals = {
            what: dict(sorted(counter.items()))
            for what, counter in counts.items()
            if counter or what not in ("cut", READ)
        }
        ending = {"counts": totals, **({"odd": odd} if odd else {})}
        file.write(f"\n], {json.dumps(ending)[1:]}\n".encode())
    return totals


def merge(plan: Plan, out: Path) -> dict[str, Any]:
    """Write the index of the finished shards into ``out``, ``index.json`` last; returns the contents of index.json."""
    counts, label_names, odd_boxes = _write_index_files(plan, out)
    odd = odd_lines([*_odd(plan, out), *odd_boxes])
    reasons = _write_report(plan, out, odd)
    shards = []
    for shard in range(plan.num_shards):
        summary = read_part(out, shard)[0]
        shards.append({"name": layout.shard_name(shard), "size": summary["size"], "crc": summary["crc"]})
    parts = [layout.TIMES] * plan.has_times + [layout.BOXES] * (plan.settings["boxes"] is not None)
    files = {
        name: {"size": (out / name).stat().st_size, "sha256": atomic.file_sha256(out / name)}
        for name in (*layout.INDEX_FILES, *parts, layout.REPORT)
    }
    index = {
        "format": layout.FORMAT,
        "version": layout.VERSION if parts else 1,
        "fingerprint": layout.fingerprint(files),
        "root_dir": plan.root_dir,
        "settings": plan.settings,
        "counts": {**counts, "bytes": sum(shard["size"] for shard in shards), **reasons},
        **({"odd": odd} if odd else {}),
        "label_names": label_names,
        "split_names": split_names(plan.settings["splits"]),
        "shards": shards,
        "files": files,
    }
    atomic.flush(out)  # all files that the index lists
    atomic.write_json(out / layout.INDEX, index)
    return index
