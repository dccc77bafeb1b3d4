"""Images decoded to RGB; every error and warning of a decoder raises InvalidImage.

libjpeg-turbo decodes JPEG; Pillow decodes everything else, and JPEG with unusual components.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from cltt.errors import InvalidImage
from cltt.source.jpeg import JpegInfo

if TYPE_CHECKING:
    import numpy as np
    from PIL.ImageFile import ImageFile

Pixels: TypeAlias = "np.ndarray[Any, Any]"

SEVERAL = "several pictures (pages or an animation) in one file, which is not read; make each a file"
_MAX_REASON = 100  # characters
_SUBFILE, _PREVIEW_OR_MASK, _MAX_PREVIEWS = 254, 1 | 4, 16
_MP_ENTRIES = 0xB002
_ORIENTATION = 0x0112  # Exif 2.3, table 3
# (left-right, up-down) mirroring for EXIF orientations 1 to 4; 5 to 8 swap rows and columns first.
MIRRORS = ((False, False), (True, False), (True, True), (False, True))


@contextlib.contextmanager
def invalid_if_it_fails(what: str) -> Iterator[None]:
    """Turn any exception of a decoder into InvalidImage.

    Numbers in its text become "N", so that reports can count equal reasons.
    """
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
    """Raise InvalidImage for a JPEG that libjpeg-turbo decodes with an error or a warning.

    It is decoded at an eighth of its size, which still reads every bit.
    """
    from cltt.source import libjpeg

    with invalid_if_it_fails("invalid JPEG"):
        libjpeg.check(data, colours)


def decode_jpeg(data: bytes, info: JpegInfo, short: int | None = None) -> Pixels:
    """RGB uint8 [height, width, 3] of a JPEG, in the stored orientation; every bit is read.

    With ``short``, the smallest size that libjpeg-turbo can decode whose short side is at least ``short``.
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
    """The orientation, 1 to 8, that Pillow reads from EXIF or XMP; 1 if it finds none."""
    return _orientation(lambda: _opened("JPEG", data))


def _orientation(opened: Callable[[], ImageFile]) -> int:
    with contextlib.suppress(Exception):  # an image with unreadable metadata is still a valid image
        found = opened().getexif().get(_ORIENTATION, 1)
        return next((turn for turn in range(2, 9) if found == turn), 1)
    return 1


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """``pixels`` upright, as PIL.ImageOps.exif_transpose turns an image with this EXIF orientation."""
    import numpy as np

    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    left_right, up_down = MIRRORS[(orientation - 1) % 4]
    return np.ascontiguousarray(pixels[:: -1 if up_down else 1, :: -1 if left_right else 1])


@functools.cache
def _factories() -> dict[str, Any]:
    """Pillow's readers by format. Its warnings about TIFF tags are silenced, as the build's report has the reasons."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")
    Image.init()
    return dict(Image.OPEN)


def _opened(kind: str, file: bytes | io.BufferedReader) -> ImageFile:
    """Pillow's image of one format, not decoded yet; the caller checks the number of pixels, Pillow does not."""
    if kind not in _factories():
        raise InvalidImage(f"{kind}, which Pillow does not read here; convert it to JPEG")
    factory = _factories()[kind][0]
    return factory(io.BytesIO(file) if isinstance(file, bytes) else file, "")


def size_of(kind: str, file: bytes | io.BufferedReader) -> tuple[int, int]:
    """(width, height) from the header of an image; ``kind``: Pillow's name of its format."""
    with invalid_if_it_fails(f"invalid {kind}"):
        return _opened(kind, file).size


def decode_other(kind: str, data: bytes) -> Pixels:
    """RGB uint8 [height, width, 3], upright, of an image of Pillow's format ``kind``; transparency is dropped."""
    with invalid_if_it_fails(f"invalid {kind}"):
        if kind == "PNG":
            _opened(kind, data).verify()  # compares each chunk's CRC, which decoding does not
        picture = _opened(kind, data)
        if _is_several(picture):
            raise InvalidImage(SEVERAL)
        picture.load()
        return turned(_rgb(picture), _orientation(lambda: picture))


def _is_several(picture: ImageFile) -> bool:
    """Whether a file holds an animation or pages; previews and masks in a TIFF do not count (TIFF 6.0, tag 254)."""
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
    """Raise InvalidImage for a JPEG file with several images of the same kind (CIPA DC-007), such as stereo pairs.

    Thumbnails and gain maps for high dynamic range do not count.
    """
    several = False
    with contextlib.suppress(Exception):  # the first image is valid even if the index cannot be read
        picture: Any = _opened("JPEG", data)
        first = picture.size
        for number, entry in enumerate(picture.mpinfo[_MP_ENTRIES][1:], 1):
            kind = entry["Attribute"]["MPType"]
            picture.seek(number)
            several |= kind.startswith("Multi-Frame") or (kind == "Undefined" and picture.size == first)
    if several:
        raise InvalidImage(SEVERAL)


def _rgb(picture: ImageFile) -> Pixels:
    """uint8 [height, width, 3]; of 16-bit samples the upper eight bits."""
    import numpy as np

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise InvalidImage(f"invalid {picture.format}: samples of 32 bits, whose range is not known")
    return np.array(picture.convert("RGB"))


def shrunk_size(width: int, height: int, short: int | None) -> tuple[int, int]:
    """(width, height) with the short side at ``short``; an image already that small keeps its size."""
    scale = 1 if short is None else short / min(width, height)
    return (width, height) if scale >= 1 else (max(1, round(width * scale)), max(1, round(height * scale)))


def shrink(pixels: Pixels, height: int, width: int, short: int | None) -> Pixels:
    """``pixels`` of a ``height`` x ``width`` image resized to a short side of ``short`` by area averaging.

    ``pixels`` may have been decoded at a smaller size. It is returned as it is if ``short`` is None or not smaller.
    """
    import cv2

    size = shrunk_size(width, height, short)
    if size == (width, height):
        return pixels
    with invalid_if_it_fails("cannot be made smaller"):
        smaller: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return smaller


def encode(pixels: Pixels, quality: int) -> bytes:
    """RGB uint8 [height, width, 3] as a 4:2:0 JPEG."""
    from cltt.source import libjpeg

    with invalid_if_it_fails("cannot be encoded"):
        return libjpeg.encode(pixels, quality, "420")
