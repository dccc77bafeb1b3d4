"""Names, tar headers and padding of a shard's members, which GNU tar and webdataset can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cltt.errors import DataError
from cltt.source.image import IMAGE_EXTENSIONS

BLOCK = 512
_NO_EXTENSION = b"%00"  # a file name cannot hold NUL, so no other name gives this


def _has_image_extension(name: bytes) -> bool:
    return b"." in name and name.lower().endswith(IMAGE_EXTENSIONS)


def member_stem(name: bytes) -> bytes:
    """The stem of the member that holds the source file ``name``; each name has a stem of its own.

    ``%`` becomes ``%25`` and ``.`` becomes ``%2E``, since webdataset takes everything after the first dot for the
    extension. ``.jpg`` at the end is left out; other extensions stay (``UP.JPG`` gives ``UP%2EJPG``). Two exceptions
    keep stems different: ``UP.JPG.jpg`` keeps its ``.jpg``, and a name without an image's extension gets ``%00``.
    """
    stem, suffix = name, b""
    if name.endswith(b".jpg") and not _has_image_extension(name[:-4]):
        stem = name[:-4]
    elif not _has_image_extension(name):
        suffix = _NO_EXTENSION
    return stem.replace(b"%", b"%25").replace(b".", b"%2E") + suffix


def source_name(stem: bytes) -> bytes:
    """The name of the source file whose member has this stem: the inverse of :func:`member_stem`."""
    marked = stem.endswith(_NO_EXTENSION)
    name = stem.removesuffix(_NO_EXTENSION).replace(b"%2E", b".").replace(b"%25", b"%")
    return name if marked or _has_image_extension(name) else name + b".jpg"


def member_name(key: bytes, name: bytes) -> bytes:
    """The member's path in the shard, for the source file ``name`` of the clip ``key``."""
    member = member_stem(name) + b".jpg"
    return member if key == b"." else key + b"/" + member


def source_path(member: bytes) -> bytes:
    """The source file's path relative to the root folder, for a member's path in the shard."""
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
    """The number of zero bytes that follow ``size`` bytes of content."""
    return -size % BLOCK


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    name = name[:100]
    digits = b"%011o" % size
    # The sum of all bytes of the header, in which the checksum itself counts as eight spaces.
    checksum = sum(name) + sum(digits) + kind[0] + _FIXED_SUM
    return b"%b%b%b\0%b%06o\0 %b%b" % (name.ljust(100, b"\0"), _MODE_UID_GID, digits, _MTIME, checksum, kind, _TAIL)


def tar_header(name: bytes, size: int) -> bytes:
    """The tar header of a member with ``size`` bytes. Owner, mode and time are fixed: equal input gives equal bytes."""
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
    """A member's path, and the number of bytes of its content, from its header."""

    name: bytes
    size: int


def read_member(pread: Callable[[int, int], bytes], offset: int) -> Member:
    """The member whose content starts at ``offset`` of a shard that ``pread(size, offset)`` reads.

    A name field without a closing NUL is the start of a long name, which is stored in the blocks before the header.

    Raises DataError if there is no header before ``offset``.
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
    """The value of a header's size field; -1 if it is not written as :func:`tar_header` does."""
    digits = header[124:135]
    return int(digits, 8) if digits.isdigit() and not digits.translate(None, b"01234567") else -1
