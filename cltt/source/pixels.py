"""Whole pictures decoded to RGB, strictly: whatever a decoder complains about, or dies of, is InvalidImage.

JPEG by libjpeg-turbo, for which a warning is an error; all else, and JPEG of odd components, by Pillow.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from cltt.errors import InvalidImage
from cltt.source.jpeg import JpegInfo

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Exif
    from PIL.ImageFile import ImageFile

Pixels: TypeAlias = "np.ndarray[Any, Any]"

SEVERAL = "several pictures (pages or an animation) in one file, which is not read; make each a file"
_MAX_REASON = 100  # letters
_SUBFILE, _PREVIEW_OR_MASK, _MAX_PREVIEWS = 254, 1 | 4, 16
_MP_ENTRIES = 0xB002
_ORIENTATION = 0x0112  # Exif 2.3, table 3


@contextlib.contextmanager
def invalid_if_it_fails(what: str) -> Iterator[None]:
    """Turn any exception of a decoder into InvalidImage; numbers are left out of its words, as reasons are counted."""
    try:
        yield
    except InvalidImage:
        raise
    except MemoryError:
        raise InvalidImage(f"{what}: it takes more memory than there is") from None
    except Exception as error:  # decoders raise nearly everything: KeyError, struct.error, SyntaxError, zlib.error ...
        words = " ".join(re.sub(r"\d+", "N", str(error)).split()) or type(error).__name__
        raise InvalidImage(f"{what}: {words[:_MAX_REASON]}") from error


def check_every_bit(data: bytes, colours: str = "GRAY") -> None:
    """Decode a JPEG at an eighth of its size, for which the entropy decoder still reads every bit.

    Raises InvalidImage for anything libjpeg-turbo complains about, a warning included.
    """
    from cltt.source import libjpeg

    with invalid_if_it_fails("invalid JPEG"):
        libjpeg.check(data, colours)


def decode_jpeg(data: bytes, info: JpegInfo, short: int | None = None) -> Pixels:
    """RGB uint8 [., ., 3] of a JPEG, not turned; every bit of it is read.

    With ``short`` as small as it comes with a short side of at least that.
    """
    if info.components in (1, 3):
        from cltt.source import libjpeg

        height, width = info.height, info.width
        reduction = 1 if short is None else libjpeg.largest_reduction(min(height, width) / short)
        with invalid_if_it_fails("invalid JPEG"):
            return libjpeg.decode(data, height, width, reduction)
    check_every_bit(data, "CMYK" if info.components == 4 else "GRAY")  # Pillow fills a hole with grey, silently
    with invalid_if_it_fails("invalid JPEG"):
        return _rgb(_opened("JPEG", data))


def jpeg_orientation(data: bytes) -> int:
    """1..8, as Pillow reads it from EXIF and XMP; 1 where it can read neither."""
    try:
        return _orientation(_opened("JPEG", data).getexif())
    except Exception:  # metadata that cannot be read does not spoil a picture
        return 1


def _orientation(exif: Exif) -> int:
    found = exif.get(_ORIENTATION, 1)
    return next((turn for turn in range(2, 9) if found == turn), 1)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """``pixels`` laid upright: what PIL.ImageOps.exif_transpose does for this EXIF orientation."""
    import numpy as np

    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    mirrored = orientation in (2, 3, 6, 7)
    upside_down = orientation in (3, 4, 7, 8)
    return np.ascontiguousarray(pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


@functools.cache
def _factories() -> dict[str, Any]:
    """Pillow's readers by format. What is wrong with a TIFF's tags is said by the report, not by warnings as well."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
    Image.init()
    return dict(Image.OPEN)


def _opened(kind: str, file: bytes | io.BufferedReader) -> ImageFile:
    """Pillow's picture of one format with nothing decoded yet; its own limit of pixels is not asked, as ours is."""
    if kind not in _factories():
        raise InvalidImage(f"{kind}, which Pillow does not read here; convert it to JPEG")
    factory = _factories()[kind][0]
    return factory(io.BytesIO(file) if isinstance(file, bytes) else file, "")


def size_of(kind: str, file: bytes | io.BufferedReader) -> tuple[int, int]:
    """(width, height) from the header of a picture of the format ``kind``, as Pillow names it."""
    with invalid_if_it_fails(f"invalid {kind}"):
        return _opened(kind, file).size


def decode_other(kind: str, data: bytes) -> Pixels:
    """RGB uint8 [height, width, 3], upright, of a picture of the format ``kind``; transparency is left out."""
    with invalid_if_it_fails(f"invalid {kind}"):
        if kind == "PNG":
            _opened(kind, data).verify()  # each chunk's CRC, which decoding alone does not compare
        picture = _opened(kind, data)
        if _is_several(picture):
            raise InvalidImage(SEVERAL)
        picture.load()
        try:
            orientation = _orientation(picture.getexif())
        except Exception:
            orientation = 1
        return turned(_rgb(picture), orientation)


def _is_several(picture: ImageFile) -> bool:
    """Whether a file holds an animation or pages; a TIFF's previews and masks are no pages (TIFF 6.0, tag 254)."""
    if picture.format != "TIFF":
        return bool(getattr(picture, "is_animated", False))
    try:
        for page in range(1, _MAX_PREVIEWS):
            picture.seek(page)
            if not picture.tag_v2.get(_SUBFILE, 0) & _PREVIEW_OR_MASK:  # type: ignore[attr-defined]
                return True
    except EOFError:
        picture.seek(0)
    return False


def check_mpo(data: bytes) -> None:
    """InvalidImage for a JPEG with more pictures of the kind of its first behind it (CIPA DC-007), as of two lenses.

    Thumbnails, and gain maps of high dynamic range, are no such pictures.
    """
    several = False
    with contextlib.suppress(Exception):  # an index that cannot be read does not spoil the first picture
        picture: Any = _opened("JPEG", data)
        first = picture.size
        for number, entry in enumerate(picture.mpinfo[_MP_ENTRIES][1:], 1):
            kind = entry["Attribute"]["MPType"]
            picture.seek(number)
            several |= kind.startswith("Multi-Frame") or (kind == "Undefined" and picture.size == first)
    if several:
        raise InvalidImage(SEVERAL)


def _rgb(picture: ImageFile) -> Pixels:
    """uint8 [height, width, 3]; of 16 bits the upper eight."""
    import numpy as np

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise InvalidImage(f"invalid {picture.format}: samples of 32 bits, whose range is not known")
    return np.array(picture.convert("RGB"))


def shrink(pixels: Pixels, height: int, width: int, short: int) -> Pixels:
    """A ``height`` x ``width`` picture, decoded to ``pixels``, at a short side of ``short`` by area averaging.

    A picture already that small stays as it is.
    """
    import cv2

    scale = short / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    with invalid_if_it_fails("cannot be made smaller"):
        smaller: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return smaller


def encode(pixels: Pixels, quality: int) -> bytes:
    """RGB uint8 [height, width, 3] as a 4:2:0 JPEG."""
    from cltt.source import libjpeg

    with invalid_if_it_fails("cannot be encoded"):
        return libjpeg.encode(pixels, quality, "420")
