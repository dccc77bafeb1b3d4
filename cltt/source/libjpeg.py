"""JPEG decoding and encoding by libjpeg-turbo (simplejpeg); only this module calls that library.

libjpeg-turbo decodes a JPEG directly to a half, a quarter or an eighth of its size, which takes less time; it still
reads every bit. It knows other fractions (3/8, 7/8 ...), but has vector code for these three only.

All functions raise ValueError for each error and each warning of libjpeg-turbo.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg

Pixels = np.ndarray[Any, Any]
_REDUCTIONS = (8, 4, 2)


def largest_reduction(shrink: float) -> int:
    """The largest of 8, 4, 2 and 1 that is not above ``shrink``, by which an image is to be made smaller."""
    return next((number for number in _REDUCTIONS if number <= shrink), 1)


def decode(jpeg: bytes, height: int, width: int, reduction: int, buffer: Pixels | None = None) -> Pixels:
    """The pixels of a ``height`` x ``width`` JPEG, ``reduction`` times smaller.

    Returns:
        RGB uint8 [ceil(height / reduction), ceil(width / reduction), 3]. It lies in ``buffer`` if one is given: uint8
        of any shape with enough room.
    """
    if reduction == 1:
        return simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffer)
    size = {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
    return simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffer, **size)


def check(jpeg: bytes, colours: str) -> None:
    """Read every bit, decoding at an eighth of the size; ``colours``: RGB, GRAY or CMYK."""
    simplejpeg.decode_jpeg(jpeg, colours, fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8)


def encode(pixels: Pixels, quality: int = 85, subsampling: str = "444") -> bytes:
    """RGB uint8 [height, width, 3] as a JPEG."""
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling=subsampling))
