"""Checks of a set of shards before it is used: people pass shards on, so nothing in them is trusted.

Opening a set checks the index, the type, shape and size of each array, and the clips. A frame's record is checked when
it is read (:func:`records_within`); the verifier checks all of them (:func:`records_in_order`). The index may only name
files that a build writes, so no path is made from text in it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cltt.errors import DataError
from cltt.files.atomic import file_crc32, file_sha256
from cltt.files.npy import NpyRows, read_array
from cltt.files.regular import is_regular
from cltt.files.retry import retry
from cltt.shards import layout, tar
from cltt.shards.layout import BUILD, FORMAT, INDEX, VERSION, read_json
from cltt.text import shorten

Array = np.ndarray[Any, Any]
T = TypeVar("T")
MAX_INT = (1 << 63) - 1
MAX_SECONDS = 1e9  # longest time in a video: thirty years
MAX_CLIPS = 1 << 25  # clips.npy has 48 bytes per clip and is read into memory
_KINDS: dict[type, str] = {str: "text", dict: "a table", list: "a list"}
_HEX = {"fingerprint": re.compile(r"[0-9a-f]{32}"), "sha256": re.compile(r"[0-9a-f]{64}")}


class Invalid(Exception):
    """A value that no build writes; the message is a phrase."""


def check_index(path: Path, index: Mapping[str, Any]) -> None:
    """Raise DataError unless ``index``, read from ``index.json`` of the set at ``path``, is as a build writes it."""
    try:
        _check_index(index)
    except Invalid as error:
        raise DataError(f"{path / INDEX}: {error}; copy it again or build the shards again in a new folder") from None


def _check_index(index: Mapping[str, Any]) -> None:
    _hex(index, "fingerprint")
    _typed(index, "root_dir", str)
    _check_settings(_typed(index, "settings", dict))
    for name in ("label_names", "split_names"):
        names = _typed(index, name, list)
        if not all(isinstance(item, str) for item in names) or len(set(names)) != len(names):
            raise Invalid(f"{name} are not names, each once")
    counts, shards, files = _typed(index, "counts", dict), _typed(index, "shards", list), _typed(index, "files", dict)
    if not shards:
        raise Invalid("it names no shards")
    for number, shard in enumerate(shards):
        _check_shard(number, shard)
    parts = layout.parts_of(files) if index["version"] >= 2 else []
    for name in (*layout.INDEX_FILES, *parts, layout.REPORT):
        _number(_typed(files, name, dict), "size")
        _hex(files[name], "sha256")
    if strange := sorted(set(files) - {*layout.INDEX_FILES, *parts, layout.REPORT}):
        raise Invalid(f"files names {strange[0]!r} too, which no build of this version writes")
    _number(counts, "frames", 1)
    _number(counts, "clips", 1, MAX_CLIPS)
    if _number(counts, "bytes") != sum(shard["size"] for shard in shards):
        raise Invalid("bytes is not the sum of the shards' sizes")
    for what in ("skipped", "reencoded", *({"cut", "read"} & set(counts))):
        for reason in _typed(counts, what, dict):
            _number(counts[what], reason)
    if not all(isinstance(line, str) for line in _typed({"odd": [], **index}, "odd", list)):
        raise Invalid("odd is not lines of text")
    if index["fingerprint"] != layout.fingerprint(files):
        raise Invalid("the fingerprint is not that of its files")


def _check_shard(number: int, shard: Any) -> None:
    if not isinstance(shard, Mapping) or shard.get("name") != layout.shard_name(number):
        raise Invalid(f"shard {number} is not named {layout.shard_name(number)}")
    _number(shard, "size", len(tar.END_OF_ARCHIVE))
    _number(shard, "crc", 0, (1 << 32) - 1)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings that the verifier uses when it makes frames from their source again."""
    if settings.get("resize_short") is not None:
        _number(settings, "resize_short", 1, 1 << 16)
    _number(settings, "quality", 1, 100)
    for name in ("fps", "max_gap"):
        if (value := settings.get(name)) is not None and not (type(value) in (int, float) and 0 < value < 1e9):
            raise Invalid(f"{name} is no number above 0")


def _number(values: Mapping[str, Any], name: str, low: int = 0, high: int = MAX_INT) -> int:
    value = values.get(name)
    if type(value) is not int or not low <= value <= high:
        raise Invalid(f"{name} is not a whole number from {low} to {high}")
    return value


def _typed(values: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = values.get(name)
    if not isinstance(value, kind):
        raise Invalid(f"{name} is not {_KINDS[kind]}")
    return value


def _hex(values: Mapping[str, Any], name: str) -> None:
    if not _HEX[name].fullmatch(_typed(values, name, str)):
        raise Invalid(f"{name} is not of hexadecimal digits")


# ---- arrays


def open_parts(path: Path, index: Mapping[str, Any]) -> dict[str, NpyRows]:
    """The optional parts of the set at ``path``, by file name; raises DataError as :func:`open_arrays`."""
    dtypes = {layout.TIMES: np.dtype("<f8"), layout.BOXES: np.dtype(layout.BOX_FIELDS)}
    parts = layout.parts_of(index["files"])
    for name in parts:
        _check_file(path / name, index["files"][name]["size"])
    return {name: NpyRows(path / name, dtypes[name], index["counts"]["frames"]) for name in parts}


def open_arrays(path: Path, index: Mapping[str, Any]) -> tuple[NpyRows, Array, NpyRows]:
    """(frames, clips, key offsets) of the set at ``path``, checked against ``index`` and each other.

    Raises DataError if a file is missing, if its type, shape or size is wrong, or if the clips do not divide the frames
    among them.
    """
    counts, sizes = index["counts"], {name: index["files"][name]["size"] for name in layout.INDEX_FILES}
    for name, size in sizes.items():
        _check_file(path / name, size)
    int64 = np.dtype("<i8")
    frames = NpyRows(path / layout.FRAMES, layout.FRAME_DTYPE, counts["frames"])
    clips = read_array(path / layout.CLIPS, int64, (layout.CLIP_ROWS, counts["clips"]))
    key_offsets = NpyRows(path / layout.KEY_OFFSETS, int64)
    try:
        _check_clips(clips, counts["frames"], len(index["label_names"]), len(index["split_names"]))
        _check_keys(clips, key_offsets, sizes[layout.KEYS])
    except Invalid as error:
        raise DataError(f"{path / layout.CLIPS}: {error}; copy the set again, or build it again") from None
    return frames, clips, key_offsets


def file_problem(path: Path, written: Mapping[str, Any]) -> str:
    """Why the file at ``path`` does not have the size and checksum in ``written``; "" if it has."""
    if not os.path.lexists(path):
        return "missing"
    if not is_regular(path):
        return "not a regular file"
    try:
        if (size := path.stat().st_size) != written["size"]:
            return f"{size} bytes, {written['size']} were written"
        is_same = file_crc32(path) == written["crc"] if "crc" in written else file_sha256(path) == written["sha256"]
    except OSError as error:
        return error.strerror or str(error)
    return "" if is_same else "checksum mismatch"


def _check_file(file: Path, size: int) -> None:
    try:
        status = retry(file, file.lstat)
    except FileNotFoundError:
        raise DataError(f"{file} is missing; build the shards again with --overwrite") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file} is not a regular file; a set of shards has no links: copy the file itself")
    if status.st_size != size:
        raise DataError(
            f"{file} has {status.st_size} bytes, {size} were written; "
            "copy it again or build the shards again with --overwrite"
        )


def _check_clips(clips: Array, frames: int, labels: int, splits: int) -> None:
    """Raise Invalid unless clips cover all frames in order, keys and parts count up, and labels and splits exist."""
    first, length = clips[layout.CLIP_FIRST], clips[layout.CLIP_LENGTH]
    if first[0] != 0 or length.min() < 1 or length.max() > frames or first.min() < 0 or first.max() >= frames:
        raise Invalid("a clip lies outside the frames")
    if (np.diff(first) != length[:-1]).any() or first[-1] + length[-1] != frames:
        raise Invalid("the clips do not cover all frames, one after the other")
    key, part = clips[layout.CLIP_KEY], clips[layout.CLIP_PART]
    if key[0] != 0 or key.min() < 0 or key.max() >= len(key) or not np.isin(steps := np.diff(key), (0, 1)).all():
        raise Invalid("the keys do not count up")
    if part[0] != 0 or (part[1:] != np.where(steps == 1, 0, part[:-1] + 1)).any():
        raise Invalid("the parts do not count up")
    for name, row, count in (("label", layout.CLIP_LABEL, labels), ("split", layout.CLIP_SPLIT, splits)):
        if clips[row].min() < -1 or clips[row].max() >= count:
            raise Invalid(f"a clip has the number of a {name} that does not exist")


def _check_keys(clips: Array, key_offsets: NpyRows, size: int) -> None:
    if len(key_offsets) != int(clips[layout.CLIP_KEY, -1]) + 2:
        raise Invalid("there are not as many keys as the clips have")
    offsets = key_offsets.read(0, len(key_offsets))
    if offsets[0] != 0 or offsets[-1] != size or (offsets[1:] <= offsets[:-1]).any():
        raise Invalid("the keys do not follow each other")


# ---- frames


def records_within(records: Array, shard_sizes: Array) -> Array:
    """bool [n]: which of ``records`` (``layout.FRAME_DTYPE``) lie within the shard that they name."""
    shard = records["shard"].astype(np.int64)
    known = shard < len(shard_sizes)
    end = shard_sizes[np.where(known, shard, 0)] - len(tar.END_OF_ARCHIVE)
    size, offset = records["size"].astype(np.int64), records["offset"]
    return known & (size > 0) & (offset >= tar.BLOCK) & (offset <= end - size)


def records_in_order(records: Array, shard_sizes: Array) -> bool:
    """Whether the frames of ``records`` follow each other in their shards, each with space for a header before it."""
    if not records_within(records, shard_sizes).all():
        return False
    shard, offset = records["shard"].astype(np.int64), records["offset"]
    gap = np.diff(offset) - records["size"][:-1].astype(np.int64)
    step = np.diff(shard)
    return bool(((step > 0) | ((step == 0) & (gap >= tar.BLOCK))).all())


def times_fit(times: Array) -> bool:
    """Whether ``times``, float64 [n], are valid: seconds from a clip's first frame, or NaN."""
    return bool((np.isnan(times) | ((times >= 0) & (times < MAX_SECONDS))).all())


def boxes_fit(boxes: Array) -> bool:
    """Whether ``boxes``, float32 [n, 4], are valid: x1, y1, x2, y2 within the frame, or four NaN."""
    low, high = boxes[:, :2], boxes[:, 2:]
    within = (low >= 0) & (low <= high) & (high <= 1)
    return bool((within.all(1) | np.isnan(boxes).all(1)).all())


def check_member(member: bytes) -> None:
    """Raise DataError unless a member's name, or a clip's key, is a path that stays below its root folder."""
    if b"\0" in member or any(part in (b"", b".", b"..") for part in member.split(b"/")):
        raise DataError(f"{member[:80]!r} is not a path below the root folder")


def read_index(path: Path) -> dict[str, Any]:
    """The contents of ``index.json`` of the set at ``path``, checked.

    Raises DataError if the shards are missing, incomplete, damaged, or of another version.
    """
    try:
        index = read_json(path / INDEX)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(_why_no_index(path)) from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path / INDEX} is not the index of a set of shards; build them with `cltt build`")
    version = index.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise DataError(
            f"{path / INDEX} has format version {shorten(repr(version), 20)}, this program reads 1 to {VERSION}; "
            "build the shards again with --overwrite, or use the program that wrote them"
        )
    check_index(path, index)
    return index


def _why_no_index(path: Path) -> str:
    if not path.is_dir():
        return f"there is no folder {path}{_sets_beside(path)}; build shards into it with `cltt build`"
    if (path / BUILD).is_dir():
        return f"{path} holds an unfinished build; start `cltt build` again with the same settings to finish it"
    inside = _sets_beside(path / "any")
    return f"{path} holds no {INDEX}, so no complete shards{inside}; build them with `cltt build`"


def _sets_beside(path: Path) -> str:
    """A phrase that names the sets beside ``path``, that with the most similar name first; "" if there are none."""
    try:
        names = [name for name in os.listdir(path.parent) if (path.parent / name / INDEX).is_file()]
    except OSError:
        return ""
    import difflib  # imported only after a mistake

    nearest = difflib.get_close_matches(path.name, names, 1, 0.5)
    meant = f"; did you mean {path.parent / nearest[0]}?" if nearest else ""
    names = sorted(names, key=lambda name: (name not in nearest, name))
    return f"{meant} ({path.parent} holds {shorten(', '.join(names), 100)})" if names else ""
