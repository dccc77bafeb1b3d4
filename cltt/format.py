"""The shards on disk: file names, member names, tar headers, index layout, checksums and atomic publication.

A set of shards is a folder: ``shard-000000.tar ...`` hold the frames, ``frames.npy`` one record a frame, ``clips.npy``
one column a clip, ``keys.bin`` and ``key_offsets.npy`` the clip keys, ``report.json`` what was left out or re-encoded,
and ``index.json``, written last, says that all of it is complete.

webdataset reads the tars too, but passes over a clip folder right under the root whose name begins and ends with two
underscores (``__this__``), its mark for metadata: name such a folder otherwise if webdataset is to see its frames.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltt.errors import DataError
from cltt.source.image import IMAGE_EXTENSIONS

if TYPE_CHECKING:
    import struct

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

BLOCK = 512
_SHARD_NAME = re.compile(r"shard-(\d{6,})\.tar")


def __getattr__(name: str) -> Any:
    if name != "FRAME_DTYPE":
        raise AttributeError(f"module 'cltt.format' has no attribute {name!r}")
    import numpy as np

    return globals().setdefault(name, np.dtype(FRAME_FIELDS))


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def is_our_file(name: str) -> bool:
    """Whether a file of this name in a folder of shards was written by a build."""
    return name in (INDEX, REPORT, *INDEX_FILES) or _SHARD_NAME.fullmatch(name) is not None


# ---- member names

_NO_EXTENSION = b"%00"  # NUL cannot be in a file name, so no other name gives this


def _looks_whole(stem: bytes) -> bool:
    return b"." in stem and stem.lower().endswith(IMAGE_EXTENSIONS)


def member_stem(name: bytes) -> bytes:
    """The stem under which the source file ``name`` lies in the tar; no two names give the same.

    ``%`` becomes ``%25`` and ``.`` becomes ``%2E``: to webdataset everything behind the first dot is the extension. A
    file that does not end in exactly ``.jpg`` keeps its whole name (``UP.JPG`` is ``UP%2EJPG``). So that this stays
    exact, ``UP.JPG.jpg`` keeps its whole name too, and a name without a picture's extension gets ``%00`` at its end.
    """
    stem, suffix = (name[:-4], b"") if name.endswith(b".jpg") else (name, b"")
    if _looks_whole(stem) and name.endswith(b".jpg"):
        stem = name
    elif not name.endswith(b".jpg") and not _looks_whole(name):
        suffix = _NO_EXTENSION
    return stem.replace(b"%", b"%25").replace(b".", b"%2E") + suffix


def source_name(stem: bytes) -> bytes:
    """The source file's name, given its stem in the tar: the inverse of :func:`member_stem`."""
    marked = stem.endswith(_NO_EXTENSION)
    name = stem.removesuffix(_NO_EXTENSION).replace(b"%2E", b".").replace(b"%25", b"%")
    return name if marked or _looks_whole(name) else name + b".jpg"


def member_name(key: bytes, name: bytes) -> bytes:
    """Path in the tar of the source file ``name`` of the clip ``key``."""
    member = member_stem(name) + b".jpg"
    return member if key == b"." else key + b"/" + member


def source_path(member: bytes) -> bytes:
    """The source file's path relative to the root folder, given its path in the tar."""
    folder, slash, file = member.rpartition(b"/")
    return folder + slash + source_name(file.removesuffix(b".jpg"))


# ---- tar (POSIX.1-1988 ustar layout with GNU magic; long names as GNU tar's manual, "Basic Tar Format", has them)

_MAX_SHORT = 99
_LONG_LINK = b"././@LongLink"
_MODE_UID_GID = b"0000644\0" + 2 * b"0000000\0"
_MTIME = b"00000000000\0"
_TAIL = (bytes(100) + b"ustar  \0").ljust(BLOCK - 157, b"\0")
_FIXED_SUM = sum(_MODE_UID_GID) + sum(_MTIME) + sum(_TAIL) + 8 * 0x20
END_OF_ARCHIVE = bytes(2 * BLOCK)


def padding(size: int) -> int:
    """Zero bytes behind ``size`` bytes of content."""
    return -size % BLOCK


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    name = name[:100]
    digits = b"%011o" % size
    # The sum of all header bytes, the checksum field itself counting as eight spaces.
    checksum = sum(name) + sum(digits) + kind[0] + _FIXED_SUM
    return b"%b%b%b\0%b%06o\0 %b%b" % (name.ljust(100, b"\0"), _MODE_UID_GID, digits, _MTIME, checksum, kind, _TAIL)


def tar_header(name: bytes, size: int) -> bytes:
    """What precedes ``size`` bytes of content under ``name``; owner, mode and time are fixed, so equal bytes result."""
    if len(name) <= _MAX_SHORT:
        return _header(name, size, b"0")
    long_name = name + b"\0"
    return (
        _header(_LONG_LINK, len(long_name), b"L")
        + long_name
        + bytes(padding(len(long_name)))
        + _header(name, size, b"0")
    )


def read_member_name(pread: Callable[[int, int], bytes], offset: int) -> bytes:
    """Name of the member whose content starts at ``offset``; ``pread(size, offset)`` reads the tar.

    A name field without a closing NUL means that the name is long and lies in the blocks before the header.
    """
    header = pread(BLOCK, offset - BLOCK)
    if len(header) != BLOCK or header[257:262] != b"ustar":
        raise DataError(f"there is no tar header before offset {offset}")
    if header[99] == 0:
        return header[:100].rstrip(b"\0")
    for blocks in range(1, 64):  # PATH_MAX is 4096; escapes make a name at most three times longer
        start = offset - (blocks + 2) * BLOCK
        if start < 0:
            break
        head = pread(BLOCK, start)
        if head.startswith(_LONG_LINK) and head[156:157] == b"L":
            size = int(head[124:135], 8)
            if size + padding(size) == blocks * BLOCK:
                return pread(size - 1, start + BLOCK)
    raise DataError(f"there is no tar header before offset {offset}")


# ---- files


class NpyWriter:
    """Writes a one-dimensional .npy file in pieces; the length is put into its header at the end."""

    def __init__(self, file: Any, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._dtype = dtype
        self.rows = 0
        self._write_header()
        self._data_start = file.tell()

    def _write_header(self) -> None:
        import numpy as np

        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)  # numpy leaves room for the length to grow

    def write(self, rows: np.ndarray[Any, Any]) -> None:
        import numpy as np

        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._data_start:
            raise DataError("the .npy header outgrew its room")
        self._file.seek(0, os.SEEK_END)


def read_npy_rows(path: Path, row: struct.Struct, start: int, stop: int) -> list[tuple[Any, ...]]:
    """Rows ``start`` to ``stop``-1 of a .npy file of version 1 that holds records laid out as ``row``."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(10)[8:], "little")
        file.seek(10 + header + start * row.size)
        return list(row.iter_unpack(file.read((stop - start) * row.size)))


def read_index(path: Path) -> dict[str, Any]:
    """The contents of ``index.json``; DataError if the shards are not there, not complete, or of another version."""
    try:
        index = json.loads((path / INDEX).read_text())
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
