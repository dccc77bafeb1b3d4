"""The files of a set of shards: their names, and the layout of the index.

A set of shards is a folder. ``shard-000000.tar ...`` hold the frames, ``frames.npy`` has one record per frame,
``clips.npy`` one column per clip, ``keys.bin`` and ``key_offsets.npy`` the clip keys, ``report.json`` what was
left out or re-encoded. ``index.json`` is written last: a set that has it is complete.

webdataset reads the shards too, but ignores a clip folder directly under the root whose name begins and ends with two
underscores (``__name__``), since it takes such names for metadata. Rename the folder if webdataset has to read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cltt.errors import DataError
from cltt.files.regular import open_regular, read_regular
from cltt.files.retry import retry

FORMAT = "cltt-shards"
VERSION = 2  # the newest version that is read; a set without optional parts is written as version 1
INDEX = "index.json"
REPORT = "report.json"
FRAMES = "frames.npy"
CLIPS = "clips.npy"
KEYS = "keys.bin"
KEY_OFFSETS = "key_offsets.npy"
BUILD = ".build"  # plan, parts and locks while a build is under way
INDEX_FILES = (FRAMES, CLIPS, KEYS, KEY_OFFSETS)
# Version 2 adds optional parts with one row per frame. Times: float64, seconds from the first frame of the clip's video
# (NaN: no time). Boxes: float32, x1, y1, x2, y2 as fractions of width and height (NaN: no box).
TIMES = "times.npy"
BOXES = "boxes.npy"
PARTS = (TIMES, BOXES)
BOX_FIELDS = [(name, "<f4") for name in ("x1", "y1", "x2", "y2")]

# offset: where the frame's bytes start in its shard; size: their number; crc: their CRC-32; width, height: in pixels.
FRAME_FIELDS = [
    ("offset", "<i8"),
    ("size", "<u4"),
    ("crc", "<u4"),
    ("shard", "<u4"),
    ("width", "<u2"),
    ("height", "<u2"),
]
FRAME_DTYPE = np.dtype(FRAME_FIELDS)
# Rows of clips.npy, int64 [6, clips]. Each row is contiguous, so the lengths can be read alone.
CLIP_FIRST, CLIP_LENGTH, CLIP_KEY, CLIP_PART, CLIP_LABEL, CLIP_SPLIT = range(6)
CLIP_ROWS = 6

_SHARD_NAME = re.compile(r"shard-[0-9]{6,}\.tar")


def shard_name(shard: int) -> str:
    """The file name of the shard with this number."""
    return f"shard-{shard:06d}.tar"


def is_our_file(name: str) -> bool:
    """Whether a file of this name in a folder of shards was written by a build."""
    name = name[1:-4] if name.startswith(".") and name.endswith(".tmp") else name  # as atomic.temporary_path makes it
    return name in (INDEX, REPORT, *INDEX_FILES, *PARTS) or _SHARD_NAME.fullmatch(name) is not None


# ---- files

MAX_REPORT = 1 << 34  # bytes of report.json, which may name every file
MAX_JSON = 1 << 28  # bytes of index.json: a thousand times what a hundred million frames need


def read_json(path: Path, limit: int = MAX_JSON) -> Any:
    """The contents of a JSON file of a set; DataError if it is not a regular file, is too large, or is not JSON."""
    try:
        data = retry(path, lambda: read_regular(path, limit, follow=False))
        return json.loads(data.decode())
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({why}); build the shards again with --overwrite") from error


def is_set_of_ours(path: Path) -> bool:
    """Whether a build of any version wrote the folder ``path``, as its index or the type of its records shows."""
    with suppress(DataError, OSError):
        index = read_json(path / INDEX)
        if isinstance(index, dict) and index.get("format") == FORMAT:
            return True
    with suppress(OSError), os.fdopen(open_regular(path / FRAMES, follow=False), "rb") as file:
        return repr(FRAME_FIELDS).encode() in file.read(1024)
    return False


def parts_of(files: Mapping[str, Any]) -> list[str]:
    """The optional parts of the set whose index has these ``files``."""
    return [name for name in PARTS if name in files]


def fingerprint(files: Mapping[str, Any]) -> str:
    """A hash that is equal for equal frames in equal clips, made from ``files`` of ``index.json``."""
    content = json.dumps([files[name]["sha256"] for name in (*INDEX_FILES, *parts_of(files))])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def read_report(path: Path) -> dict[str, Any]:
    """The contents of ``report.json`` of the set at ``path``; DataError if it is missing or damaged.

    ``files`` is a list of {file, what: skipped, cut or reencoded, reason}, ``counts`` has their numbers by reason, and
    ``odd``, if it is there, has one line for each thing in the source that looked odd.
    """
    try:
        report = read_json(path / REPORT, limit=MAX_REPORT)
    except FileNotFoundError:
        raise DataError(f"{path / REPORT} is missing; copy it again") from None
    files = report.get("files") if isinstance(report, dict) else None
    if not isinstance(files, list) or not all(isinstance(file, dict) and _is_note(file) for file in files):
        raise DataError(f"{path / REPORT} is not a build's report; copy it again")
    return dict(report)


def _is_note(file: dict[str, Any]) -> bool:
    return all(isinstance(file.get(name), str) for name in ("file", "what", "reason"))
