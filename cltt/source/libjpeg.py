"""JPEGs decoded and encoded by libjpeg-turbo (simplejpeg); nothing else here knows of that library.

A JPEG can be decoded straight to a half, a quarter or an eighth of its size, which the DCT gives for a part of the
work. Every bit is still read. libjpeg-turbo knows other fractions (3/8, 7/8 ...), but has vector code for these alone.

All functions raise ValueError for whatever libjpeg-turbo complains about, a warning included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg

Pixels = np.ndarray[Any, Any]
_REDUCTIONS = (8, 4, 2)


def largest_reduction(shrink: float) -> int:
    """The largest of 8, 4, 2 and 1 that a picture may be reduced by which is to be ``shrink`` times smaller."""
    return next((number for number in _REDUCTIONS if number <= shrink), 1)


def decode(jpeg: bytes, height: int, width: int, reduction: int, buffer: Pixels | None = None) -> Pixels:
    """The pixels of a ``height`` x ``width`` JPEG, ``reduction`` times smaller.

    Returns:
        RGB uint8 [ceil(height / reduction), ceil(width / reduction), 3], in ``buffer`` uint8 where there is one (its
        size is free, as long as the pixels fit).
    """
    if reduction == 1:
        return simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffer)
    size = {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
    return simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffer, **size)


def decode_small(jpeg: bytes, side: int) -> Pixels:
    """RGB uint8 [., ., 3], as small as it comes with no side below ``side``; quick, and not the pixels of `decode`."""
    return simplejpeg.decode_jpeg(jpeg, "RGB", fastdct=True, min_height=side, min_width=side)


def check(jpeg: bytes, colours: str) -> None:
    """Read every bit, at an eighth of the size; ``colours``: RGB, GRAY or CMYK."""
    simplejpeg.decode_jpeg(jpeg, colours, fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8)


def encode(pixels: Pixels, quality: int = 85, subsampling: str = "444") -> bytes:
    """RGB uint8 [height, width, 3] as a JPEG."""
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling=subsampling))
