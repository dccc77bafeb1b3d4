"""Members of a shard: their names, tar headers and padding, as GNU tar and webdataset read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cltt.errors import DataError
from cltt.source.image import IMAGE_EXTENSIONS

BLOCK = 512
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


class Member(NamedTuple):
    """What a header says: the member's path, and the bytes of its content."""

    name: bytes
    size: int


def read_member(pread: Callable[[int, int], bytes], offset: int) -> Member:
    """The member whose content starts at ``offset``; ``pread(size, offset)`` reads the tar. DataError if there is none.

    A name field without a closing NUL means that the name is long and lies in the blocks before the header.
    """
    header = pread(BLOCK, offset - BLOCK) if offset >= BLOCK else b""
    if len(header) != BLOCK or header[257:262] != b"ustar":
        raise DataError(f"there is no tar header before offset {offset}")
    size = _octal(header)
    if header[99] == 0:
        return Member(header[:100].rstrip(b"\0"), size)
    for blocks in range(1, 64):  # PATH_MAX is 4096; escapes make a name at most three times longer
        start = offset - (blocks + 2) * BLOCK
        if start < 0:
            break
        head = pread(BLOCK, start)
        if head.startswith(_LONG_LINK) and head[156:157] == b"L":
            length = _octal(head)
            if length > 0 and length + padding(length) == blocks * BLOCK:
                return Member(pread(length - 1, start + BLOCK), size)
    raise DataError(f"there is no tar header before offset {offset}")


def _octal(header: bytes) -> int:
    """A header's size field; -1, which no size is, for one that is not as we write it."""
    digits = header[124:135]
    return int(digits, 8) if digits.isdigit() and not digits.translate(None, b"01234567") else -1
