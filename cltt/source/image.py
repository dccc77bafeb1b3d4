"""What a source file's bytes are, and the JPEG that goes into a shard for them.

A frame is stored as it is unless a hardware JPEG decoder could not take it upright (PNG, CMYK, EXIF-rotated ...) or
smaller frames are asked for. Sizes are looked at before anything is decoded, or a large file read.
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
MAX_SIDE = 65_500  # pixels; libjpeg's JPEG_MAX_DIMENSION
MAX_BYTES = (1 << 32) - 1  # of a stored frame: its record has 32 bits
HEAD = 64  # bytes that tell a format
LARGE = 64 << 20  # bytes of metadata that any picture may have; the header of a larger file is looked at first ...
BYTES_A_PIXEL = 8  # ... and it must not have more than this for each pixel besides: RGBA at 16 bits
_HEADER = 16 << 20  # bytes within which a large JPEG must say its size
_STILL_BRANDS = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_KINDS = ((jpeg.START, "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"))


class Stored(NamedTuple):
    """The bytes that go into the shard, their size in pixels, and why they are not the source's (empty: they are).

    full_width, full_height: pixels of the upright source, before any shrinking.
    """

    data: bytes
    width: int
    height: int
    reencoded: str
    full_width: int
    full_height: int


MAYBE_DEPTH, MAYBE_MASK = "PNG of 16 bits", "PNG with a palette"  # reasons in ``Stored.reencoded``


def image_kind(head: bytes) -> str:
    """The format, by Pillow's name, of a file with these first bytes; empty if it cannot be a frame."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:  # ISO 23008-12: pictures in a video's container
        return "AVIF" if b"avif" in head[8:HEAD] or b"avis" in head[8:HEAD] else "HEIF"
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), "")


def is_image(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a picture format that can be a frame."""
    return image_kind(head) != ""


# ---- before anything is decoded


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """InvalidImage for a picture without pixels, or with more than ``max_pixels``."""
    if not 0 < width * height <= max_pixels:
        raise InvalidImage(f"more than {max_pixels:,} pixels" if width * height else "no pixels")


def read_source(path: str | bytes | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> bytes:
    """All bytes of a source file. InvalidImage, before they are read, if it cannot be a picture by its size."""
    with os.fdopen(open_regular(path), "rb") as file:
        check_file(file.fileno(), os.fstat(file.fileno()).st_size, max_pixels)
        return file.read()


def check_file(handle: int, size: int, max_pixels: int) -> None:
    """InvalidImage for a large open file of ``size`` bytes that is no picture, or too large for the one it begins."""
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
            file.seek(0)  # the copy shares its place with ``handle``
    check_pixels(width, height, max_pixels)
    if size > LARGE + BYTES_A_PIXEL * width * height:
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
    """The JPEG a shard keeps for the source bytes ``data``.

    ``verify="decode"`` reads every bit of a frame that is copied; ``"header"`` looks at the markers and the end. Raises
    InvalidImage, and nothing else, for bytes that are no whole picture, or none that a shard can keep.
    """
    if not data:
        raise InvalidImage("empty file")
    kind = image_kind(data[:HEAD])
    if not kind:
        raise InvalidImage("not an image")
    if kind != "JPEG":
        check_pixels(*pixels.size_of(kind, data), max_pixels)
        reason = _png_reason(data) if kind == "PNG" else "not a JPEG"
        whole = pixels.decode_other(kind, data)
        full = whole.shape[1], whole.shape[0]
        return _encoded(_shrunk(whole, resize_short), full, reason, resize_short, quality)
    info = jpeg.jpeg_info(data)
    check_pixels(info.width, info.height, max_pixels)
    jpeg.check_scans(data, info)
    if info.has_pictures:
        pixels.check_mpo(data)
    orientation = pixels.jpeg_orientation(data) if info.has_metadata else 1
    reason = f"EXIF orientation {orientation}" if orientation != 1 else jpeg.why_not_for_hardware(info)
    if not reason and resize_short is None:
        return _copied(data, info, verify)
    picture = _shrunk(pixels.decode_jpeg(data, info, resize_short), resize_short, info.height, info.width)
    full = (info.height, info.width) if orientation >= 5 else (info.width, info.height)
    return _encoded(pixels.turned(picture, orientation), full, reason, resize_short, quality)


def _png_reason(data: bytes) -> str:
    """Why a PNG is stored anew; IHDR (https://www.w3.org/TR/png/#11IHDR) says what depth maps and masks often have."""
    bits, colour = data[24], data[25]
    return MAYBE_DEPTH if bits == 16 else MAYBE_MASK if colour == 3 else "PNG"


def _shrunk(picture: pixels.Pixels, short: int | None, height: int = 0, width: int = 0) -> pixels.Pixels:
    """A ``height`` x ``width`` picture, which may have been decoded smaller, at a short side of ``short``."""
    if short is None:
        return picture
    return pixels.shrink(picture, height or picture.shape[0], width or picture.shape[1], short)


def _copied(data: bytes, info: jpeg.JpegInfo, verify: str) -> Stored:
    if verify == "decode" or not data.endswith(jpeg.END):  # cut off, or padded as some cameras do
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
    """InvalidImage for what a shard cannot keep, or a loader would not take."""
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(f"more than {MAX_SIDE:,} pixels on a side, which no JPEG can have")
    check_pixels(width, height, MAX_PIXELS)
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"more than {MAX_BYTES:,} bytes")
