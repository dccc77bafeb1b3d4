"""From the parts of all shards to the index: cut clips where frames are missing, give labels and splits, publish."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cltt import format, source
from cltt._pack import read_part
from cltt._plan import Plan
from cltt.errors import DataError, SettingsError

NONE = -1  # no label, no split
PART_DTYPE = np.dtype([*format.FRAME_FIELDS, ("good", "?")])  # what _pack.PART_ROW packs


# ---- labels and splits, by the key of the clip's folder


def parent_of(key: str) -> str:
    """The folder that holds the clip; a clip that lies directly under the root is its own."""
    return key.rpartition("/")[0] or key


def split_fraction(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``name`` and ``seed`` alone."""
    digest = hashlib.sha256(f"{seed}\0".encode() + os.fsencode(name)).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def parse_splits(splits: str | None) -> dict[str, float]:
    """``"train=0.8,val=0.2"`` as a dict; SettingsError if it is not that or does not add up to 1."""
    if not splits:
        return {}
    try:
        pairs = [part.split("=") for part in splits.split(",")]
        parsed = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        raise SettingsError(f"splits is {splits!r}; it must look like train=0.8,val=0.1,test=0.1") from None
    if len(parsed) != len(pairs) or "" in parsed or min(parsed.values()) < 0 or abs(sum(parsed.values()) - 1) > 1e-6:
        raise SettingsError(f"splits is {splits!r}; names must differ, shares be 0 or more and add up to 1")
    return parsed


def splitter(settings: dict[str, Any]) -> Callable[[str], int]:
    """A function from clip key to the number of its split."""
    ends = np.cumsum(list(parse_splits(settings["splits"]).values()))
    by_parent = settings["split_by"] == "parent"

    def split_of(key: str) -> int:
        fraction = split_fraction(parent_of(key) if by_parent else key, settings["split_seed"])
        return min(int(np.searchsorted(ends, fraction, side="right")), len(ends) - 1)

    return split_of if len(ends) else lambda key: NONE


def read_label_table(path: str) -> dict[str, str]:
    """Clip key -> label from a CSV file of two columns (a first row ``clip,label`` is a header)."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise SettingsError(f"label_from: cannot read {path!r}: {error.strerror}") from error
    if not rows or any(len(row) != 2 for row in rows):
        raise SettingsError(f"label_from: {path!r} must have two columns, clip key and label")
    if rows[0] == ["clip", "label"]:
        rows = rows[1:]
    return {key.rstrip("/"): label for key, label in rows}


def labeller(label_from: str | None) -> Callable[[str], str | None]:
    """A function from clip key to label (None: none). SettingsError for a rule that cannot work."""
    kind, _, rest = (label_from or "none").partition(":")
    if label_from is None:
        return lambda key: None
    if label_from == "parent":
        return parent_of
    if kind == "csv" and rest:
        return read_label_table(rest).get
    if kind == "regex" and rest:
        try:
            pattern = re.compile(rest)
        except re.error as error:
            raise SettingsError(f"label_from: {rest!r} is not a regular expression: {error}") from error
        return lambda key: match.group(pattern.groups and 1) if (match := pattern.search(key)) else None
    raise SettingsError(f"label_from is {label_from!r}; it must be parent, regex:PATTERN or csv:FILE")


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
    label_of, split_of = labeller(settings["label_from"]), splitter(settings)
    labels = [label_of(name) for name in names]
    label_names = sorted(
        {label for label in labels if label is not None}, key=lambda name: source.path_order(os.fsencode(name))
    )
    number = {label: k for k, label in enumerate(label_names)}
    if settings["label_from"] is not None and not label_names:
        raise SettingsError(
            f"label_from {settings['label_from']!r} gives no clip a label; the first clip is {names[0]!r}"
        )
    label = np.array([NONE if label is None else number[label] for label in labels], np.int64)[key]
    split = np.array([split_of(name) for name in names], np.int64)[key]
    rows = [first, np.diff(first, append=num_frames), key, part, label, split]
    return np.ascontiguousarray(np.stack(rows)), label_names


def _write_index_files(plan: Plan, out: Path) -> tuple[int, int, list[str]]:
    """Write frames.npy, clips.npy and the keys; (frames, clips, label names)."""
    clips = _Clips()
    with format.published(out / format.FRAMES, sync=False) as file:
        writer = format.NpyWriter(file, format.FRAME_DTYPE)
        for rows in _frame_rows(plan, out, clips):
            writer.write(rows)
        writer.close()
    if writer.rows == 0:
        raise DataError(f"not one of the {plan.num_frames} files under {plan.root_dir!r} is a whole picture")
    matrix, label_names = _clip_matrix(clips, writer.rows, plan.settings)
    with format.published(out / format.CLIPS, sync=False) as file:
        np.save(file, matrix)
    with format.published(out / format.KEYS, sync=False) as file:
        file.write(b"".join(clips.keys))
    with format.published(out / format.KEY_OFFSETS, sync=False) as file:
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
    with format.published(out / format.REPORT, sync=False) as file:
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
        name: {"size": (out / name).stat().st_size, "sha256": format.file_sha256(out / name)}
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
    format.flush(out)  # all that the index speaks of
    format.write_json(out / format.INDEX, index)
    return index
