"""From the parts of all shards to the index: cut clips where frames are missing, give labels and splits, publish."""

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
from cltt.packing.plan import Plan
from cltt.shards import layout
from cltt.shards.clip_table import ClipCutter
from cltt.source.odd import Odd, odd_lines
from cltt.source.videos import READ

# ---- clips and frames


class _Frames:
    """The frames of all shards, and the files of the index that have a row for each of them."""

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
        """Write the rows of all valid frames of a shard, and tell the cutter of all files."""
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
        """The boxes of a shard's planned frames, relative to the frames' sizes and within them; NaN for none."""
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


def _clip_matrix(
    cutter: ClipCutter, keys: list[bytes], settings: dict[str, Any]
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """(clips.npy [6, clips], label names)."""
    first, length, part = cutter.columns()
    _, key = cutter.keys()
    names = [os.fsdecode(key) for key in keys]
    labels, label_names = label_clips(names, settings)
    splits = split_clips(names, settings)
    return np.ascontiguousarray(np.stack([first, length, key, part, labels[key], splits[key]])), label_names


def _write_index_files(plan: Plan, out: Path) -> tuple[dict[str, Any], list[str], list[Odd]]:
    """Write frames.npy and the optional parts, clips.npy and the keys; (counts, label names, what is odd of boxes)."""
    with contextlib.ExitStack() as files:
        frames = _Frames(plan, out, files)
        for shard in range(plan.num_shards):
            frames.add(shard)
        frames.close()
    if frames.rows == 0:
        reasons = Counter(reason for _, what, reason in _notes(plan, out) if what == "skipped").most_common(1)
        why = f" (of {reasons[0][1]}: {reasons[0][0]})" if reasons else ""
        raise DataError(f"not one of the {plan.num_frames} files under {plan.root_dir!r} is a whole picture{why}")
    cutter = frames.cutter
    all_keys = plan.keys(0, plan.num_clips)
    keys = [all_keys[folder] for folder in cutter.keys()[0].tolist()]
    matrix, label_names = _clip_matrix(cutter, keys, plan.settings)
    with atomic.published(out / layout.CLIPS, sync=False) as file:
        np.save(file, matrix)
    with atomic.published(out / layout.KEYS, sync=False) as file:
        file.write(b"".join(keys))
    with atomic.published(out / layout.KEY_OFFSETS, sync=False) as file:
        np.save(file, np.cumsum([0, *map(len, keys)], dtype=np.int64))
    counts: dict[str, Any] = {"frames": frames.rows, "clips": matrix.shape[1]}
    if plan.settings["boxes"] is not None:
        counts["boxes"] = {"used": frames.boxes.used, "unused": len(frames.boxes.unused())}
    return counts, label_names, list(frames.boxes.odd())


# ---- report and index


def _notes(plan: Plan, out: Path) -> Iterator[tuple[str, str, str]]:
    """(path, "skipped", "cut" or "reencoded", reason), file by file."""
    yield from plan.notes()
    for shard in range(plan.num_shards):
        yield from read_part(out, shard)[0]["notes"]


def _odd(plan: Plan, out: Path) -> Iterator[Odd]:
    """What the scan and the packing found odd, and the tables of clips."""
    yield from plan.odd
    yield from odd_tables([os.fsdecode(key) for key in plan.keys(0, plan.num_clips)], plan.settings)
    for shard in range(plan.num_shards):
        yield from (Odd(*record) for record in read_part(out, shard)[0].get("odd", ()))


def _write_report(plan: Plan, out: Path, odd: list[str]) -> dict[str, dict[str, int]]:
    """Write report.json a line a file; counts by reason of what was skipped, cut and re-encoded."""
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
    """Write the index of finished shards into ``out``, ``index.json`` last; returns its contents."""
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
    atomic.flush(out)  # all that the index speaks of
    atomic.write_json(out / layout.INDEX, index)
    return index
