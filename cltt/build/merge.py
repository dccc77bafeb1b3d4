"""From the parts of all shards to the index: cut clips where frames are missing, give labels and splits, publish."""

from __future__ import annotations

import json
import os
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
from cltt.shards.clip_table import ClipCutter

PART_DTYPE = np.dtype([*format.FRAME_FIELDS, ("good", "?")])  # what _pack.PART_ROW packs


# ---- clips and frames


def _frame_rows(plan: Plan, out: Path, cutter: ClipCutter) -> Iterator[np.ndarray[Any, Any]]:
    """The index records of all valid frames, shard by shard; ``cutter`` is told of all files along the way."""
    for shard in range(plan.num_shards):
        frames = plan.shard_frames(shard)
        rows = np.frombuffer(read_part(out, shard)[1], PART_DTYPE)
        planned = np.array(plan.frames[frames.start : frames.stop])
        cutter.add(planned["clip"].astype(np.int64), rows["good"], planned["gap"])
        yield rows[rows["good"]][list(format.FRAME_DTYPE.names or ())]


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


def _write_index_files(plan: Plan, out: Path) -> tuple[int, int, list[str]]:
    """Write frames.npy, clips.npy and the keys; (frames, clips, label names)."""
    cutter = ClipCutter()
    with atomic.published(out / format.FRAMES, sync=False) as file:
        writer = npy.NpyWriter(file, format.FRAME_DTYPE)
        for rows in _frame_rows(plan, out, cutter):
            writer.write(rows)
        writer.close()
    if writer.rows == 0:
        raise DataError(f"not one of the {plan.num_frames} files under {plan.root_dir!r} is a whole picture")
    all_keys = plan.keys(0, plan.num_clips)
    keys = [all_keys[folder] for folder in cutter.keys()[0].tolist()]
    matrix, label_names = _clip_matrix(cutter, keys, plan.settings)
    with atomic.published(out / format.CLIPS, sync=False) as file:
        np.save(file, matrix)
    with atomic.published(out / format.KEYS, sync=False) as file:
        file.write(b"".join(keys))
    with atomic.published(out / format.KEY_OFFSETS, sync=False) as file:
        np.save(file, np.cumsum([0, *map(len, keys)], dtype=np.int64))
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
    index = {
        "format": format.FORMAT,
        "version": format.VERSION,
        "fingerprint": format.fingerprint(files),
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
