"""The shards on disk: file names, member names, tar headers, index layout, checksums and atomic publication.

A set of shards is a folder: ``shard-000000.tar ...`` hold the frames, ``frames.npy`` one record a frame, ``clips.npy``
one column a clip, ``keys.bin`` and ``key_offsets.npy`` the clip keys, ``report.json`` what was left out or re-encoded,
and ``index.json``, written last, says that all of it is complete.

webdataset reads the tars too, but passes over a clip folder right under the root whose name begins and ends with two
underscores (``__this__``), its mark for metadata: name such a folder otherwise if webdataset is to see its frames.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltt.errors import DataError
from cltt.files.patience import Patience

if TYPE_CHECKING:
    import numpy as np

FORMAT = "cltt-shards"
VERSION = 1
INDEX = "index.json"
REPORT = "report.json"
FRAMES = "frames.npy"
CLIPS = "clips.npy"
KEYS = "keys.bin"
KEY_OFFSETS = "key_offsets.npy"
BUILD = ".build"  # plan, parts and locks while a build is under way
INDEX_FILES = (FRAMES, CLIPS, KEYS, KEY_OFFSETS)

# offset: where the frame's bytes start in its shard; crc: CRC-32 of the bytes; width, height: pixels.
FRAME_FIELDS = [
    ("offset", "<i8"),
    ("size", "<u4"),
    ("crc", "<u4"),
    ("shard", "<u4"),
    ("width", "<u2"),
    ("height", "<u2"),
]
FRAME_DTYPE: np.dtype[Any]  # the same to numpy, made when first touched: packing processes start without numpy
# Rows of clips.npy, int64 [6, clips]: a row lies in one piece, so reading the lengths touches nothing else.
CLIP_FIRST, CLIP_LENGTH, CLIP_KEY, CLIP_PART, CLIP_LABEL, CLIP_SPLIT = range(6)
CLIP_ROWS = 6

_SHARD_NAME = re.compile(r"shard-(\d{6,})\.tar")


def __getattr__(name: str) -> Any:
    if name != "FRAME_DTYPE":
        raise AttributeError(f"module 'cltt.shards.format' has no attribute {name!r}")
    import numpy as np

    return globals().setdefault(name, np.dtype(FRAME_FIELDS))


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def is_our_file(name: str) -> bool:
    """Whether a file of this name in a folder of shards was written by a build."""
    return name in (INDEX, REPORT, *INDEX_FILES) or _SHARD_NAME.fullmatch(name) is not None


def read_index(path: Path, patience: Patience | None = None) -> dict[str, Any]:
    """The contents of ``index.json``; DataError if the shards are not there, not complete, or of another version."""
    try:
        index = json.loads((patience or Patience()).read_bytes(path / INDEX))
    except FileNotFoundError:
        raise DataError(_why_no_index(path)) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path / INDEX} cannot be read ({error}); build the shards again with --overwrite") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path / INDEX} is not the index of a set of shards")
    if index.get("version") != VERSION:
        raise DataError(
            f"{path / INDEX} has format version {index.get('version')}, this program reads version {VERSION}; "
            "build the shards again with --overwrite, or use the program that wrote them"
        )
    return index


def read_report(path: Path) -> dict[str, Any]:
    """``report.json``: ``files``, a list of {file, what: skipped or reencoded, reason}, and ``counts`` by reason."""
    report: dict[str, Any] = json.loads((path / REPORT).read_text())
    return report


def _why_no_index(path: Path) -> str:
    if not path.is_dir():
        return f"there is no folder {path}; build shards into it with tools/build_shards.py"
    if (path / BUILD).is_dir():
        return (
            f"{path} holds an unfinished build; start tools/build_shards.py again with the same settings to finish it"
        )
    return f"{path} holds no {INDEX}, so no complete shards; build them with tools/build_shards.py"
