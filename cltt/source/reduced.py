"""JPEGs decoded straight to a half, a quarter or an eighth of their size, which the DCT gives for a part of the work.

Every bit is still read. libjpeg-turbo knows other fractions (3/8, 7/8 ...), but has vector code for these alone.
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

    Raises:
        ValueError: whatever libjpeg-turbo complains about, a warning included.
    """
    if reduction == 1:
        return simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffer)
    size = {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
    return simplejpeg.decode_jpeg(jpeg, "RGB", buffer=buffer, **size)
