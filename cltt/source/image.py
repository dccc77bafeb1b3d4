"""Image files: their format by content, and the JPEG that a shard stores for each.

A JPEG is stored byte for byte unless a hardware decoder could not decode it upright (CMYK, EXIF-rotated ...) or
smaller frames are asked for. Other formats are encoded as JPEG. The header is checked before an image is decoded, or a
large file read.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from cltt.errors import InvalidImage
from cltt.files.regular import open_regular
from cltt.source import jpeg, pixels

IMAGE_EXTENSIONS = (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp")
UPRIGHT_QUALITY = 95
MAX_PIXELS = 178_956_970  # PIL.Image.MAX_IMAGE_PIXELS: a quarter of a gigabyte at three bytes
MAX_SIDE = 65_500  # pixels: libjpeg's JPEG_MAX_DIMENSION
MAX_BYTES = (1 << 32) - 1  # of a stored frame: its size has 32 bits in the index
HEAD = 64  # first bytes of a file, for image_kind
LARGE = 64 << 20  # bytes: the header of a larger file is checked before the file is read ...
BYTES_PER_PIXEL = 8  # ... and it may hold LARGE bytes of metadata and this many per pixel: RGBA at 16 bits
_HEADER = 16 << 20  # bytes within which a large JPEG must have its frame header
_STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_KINDS = ((jpeg.START, "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"))


_jpeg_info = jpeg.HeaderReader()  # frames of a clip mostly have one header


class Stored(NamedTuple):
    """The bytes that go into the shard, and their size in pixels.

    reencoded: why they are not the bytes of the source; empty if they are. full_width, full_height: pixels of the
    upright source, before it is made smaller.
    """

    data: bytes
    width: int
    height: int
    reencoded: str
    full_width: int
    full_height: int


MAYBE_DEPTH, MAYBE_MASK = "PNG of 16 bits", "PNG with a palette"  # reasons in ``Stored.reencoded``


def image_kind(head: bytes) -> str:
    """Pillow's name of the image format of a file with these first ``HEAD`` bytes; empty if it is none."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:  # ISO 23008-12: images in an MP4 container
        return "AVIF" if b"avif" in head[8:HEAD] or b"avis" in head[8:HEAD] else "HEIF"
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), "")


# ---- before anything is decoded


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise InvalidImage for an image with no pixels, or with more than ``max_pixels``."""
    if not 0 < width * height <= max_pixels:
        raise InvalidImage(f"more than {max_pixels:,} pixels" if width * height else "no pixels")


def read_source(path: str | bytes | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> bytes:
    """All bytes of a source file; raises InvalidImage before reading it, as :func:`check_file` does."""
    with os.fdopen(open_regular(path), "rb") as file:
        check_file(file.fileno(), os.fstat(file.fileno()).st_size, max_pixels)
        return file.read()


def check_file(handle: int, size: int, max_pixels: int) -> None:
    """Raise InvalidImage for a large open file of ``size`` bytes that is no image, or has far more bytes than one."""
    if size <= LARGE:
        return
    kind = image_kind(os.pread(handle, HEAD, 0))
    if not kind:
        raise InvalidImage("not an image")
    if kind == "JPEG":
        info = jpeg.jpeg_info(os.pread(handle, _HEADER, 0))
        width, height = info.width, info.height
    else:
        with os.fdopen(os.dup(handle), "rb") as file:
            file.seek(0)
            width, height = pixels.size_of(kind, file)
            file.seek(0)  # the copy shares its position with ``handle``
    check_pixels(width, height, max_pixels)
    if size > LARGE + BYTES_PER_PIXEL * width * height:
        raise InvalidImage("more bytes than a picture of its width and height can have")


# ---- what is stored


def as_stored(
    data: bytes,
    *,
    verify: str = "decode",
    resize_short: int | None = None,
    quality: int = 90,
    max_pixels: int = MAX_PIXELS,
) -> Stored:
    """The JPEG that a shard stores for the source bytes ``data``.

    ``verify="decode"`` reads every bit of a frame that is copied; ``"header"`` reads its markers and its end. Raises
    InvalidImage, and no other error, if ``data`` is no complete image or one that a shard cannot store.
    """
    if not data:
        raise InvalidImage("empty file")
    kind = image_kind(data[:HEAD])
    if not kind:
        raise InvalidImage("not an image")
    if kind != "JPEG":
        check_pixels(*pixels.size_of(kind, data), max_pixels)
        reason = _png_reason(data) if kind == "PNG" else "not a JPEG"
        picture = pixels.decode_other(kind, data)
        height, width = picture.shape[:2]
        picture = pixels.shrink(picture, height, width, resize_short)
        return _encoded(picture, (width, height), reason, resize_short, quality)
    info = _jpeg_info(data)
    check_pixels(info.width, info.height, max_pixels)
    jpeg.check_scans(data, info)
    if info.has_pictures:
        pixels.check_mpo(data)
    orientation = pixels.jpeg_orientation(data) if info.has_metadata else 1
    reason = f"EXIF orientation {orientation}" if orientation != 1 else jpeg.why_not_for_hardware(info)
    if not reason and resize_short is None:
        return _copied(data, info, verify)
    decoded = pixels.decode_jpeg(data, info, resize_short)
    picture = pixels.shrink(decoded, info.height, info.width, resize_short)
    full = (info.height, info.width) if orientation >= 5 else (info.width, info.height)
    return _encoded(pixels.turned(picture, orientation), full, reason, resize_short, quality)


def _png_reason(data: bytes) -> str:
    """Why a PNG is encoded as JPEG; the header (https://www.w3.org/TR/png/#11IHDR) shows likely depth and masks."""
    bits, colour = data[24], data[25]
    return MAYBE_DEPTH if bits == 16 else MAYBE_MASK if colour == 3 else "PNG"


def _copied(data: bytes, info: jpeg.JpegInfo, verify: str) -> Stored:
    if verify == "decode" or not data.endswith(jpeg.END):  # cut off, or padded, as by some cameras
        pixels.check_every_bit(data)
    check_stored(data, info.width, info.height)
    return Stored(data, info.width, info.height, "", info.width, info.height)


def _encoded(
    picture: pixels.Pixels, full: tuple[int, int], reason: str, resize_short: int | None, quality: int
) -> Stored:
    height, width = picture.shape[:2]
    check_stored(b"", width, height)
    encoded = pixels.encode(picture, UPRIGHT_QUALITY if resize_short is None else quality)
    check_stored(encoded, width, height)
    return Stored(encoded, width, height, reason or "resized", *full)


def check_stored(data: bytes, width: int, height: int) -> None:
    """Raise InvalidImage for a frame that a shard cannot store or a loader would refuse."""
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(f"more than {MAX_SIDE:,} pixels on a side, which no JPEG can have")
    check_pixels(width, height, MAX_PIXELS)
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"more than {MAX_BYTES:,} bytes")
