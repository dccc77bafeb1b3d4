"""Decoded frames converted to upright 8-bit RGB with square pixels.

Matrix and range come from the frame's tags (ITU-T H.273). As in players, a frame without a matrix is BT.709 from 720
lines upward and BT.601 below; one without a range is limited.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.source.pixels import MIRRORS, shrunk_size, turned
from cltt.source.video.streams import WHOLE, Crop

if TYPE_CHECKING:
    import av

Array = np.ndarray[Any, Any]
# H.273 matrix coefficients -> swscale's numbers: BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020 twice.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709, _BT601 = 1, 5
_LIMITED, _FULL = 1, 2
_HD_LINES = 720
_MOST_STRETCH = 16  # a larger or smaller aspect ratio of a pixel is ignored as an error


def orientation_of(frame: av.VideoFrame) -> int:
    """The EXIF orientation nearest to the display matrix (ISO 14496-12, 6.2.2: x' = ax + cy, y' = bx + dy)."""
    found: Any = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(found))
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    return 1 + 4 * swap + MIRRORS.index((c < 0, b < 0) if swap else (a < 0, d < 0))


def square_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """(width, height) with square pixels; ``aspect``: of a pixel. The number of lines stays."""
    if not aspect or not 1 / _MOST_STRETCH <= aspect <= _MOST_STRETCH:
        return width, height
    return max(1, round(width * aspect)), height


class Upright:
    """Converts the frames of one stream to pixels; for one thread at a time."""

    def __init__(self, aspect: Fraction | None, resize_short: int | None = None, crop: Crop = WHOLE) -> None:
        from av.video.reformatter import VideoReformatter

        self._aspect = aspect
        self._crop = crop
        self._short = resize_short
        self._reformatter = VideoReformatter()

    def rgb(self, frame: av.VideoFrame) -> tuple[Array, tuple[int, int]]:
        """(uint8 [height, width, 3], (width, height) of the upright frame before any shrinking)."""
        orientation = orientation_of(frame)
        if self._crop != WHOLE:
            frame = self._cropped(frame)
        square = square_size(frame.width, frame.height, self._aspect)
        pixels = self._converted(frame, square, shrunk_size(*square, self._short))
        return turned(pixels, orientation), (square[1], square[0]) if orientation >= 5 else square

    def _cropped(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame in RGB with the crop cut off; the whole frame if nothing would be left."""
        import av

        size = frame.width, frame.height
        width, height = self._crop.size(*size)
        if min(width, height) <= 0:
            return frame
        rows, columns = slice(self._crop.top, self._crop.top + height), slice(self._crop.left, self._crop.left + width)
        pixels = self._converted(frame, size, size)[rows, columns]
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")

    def _converted(self, frame: av.VideoFrame, whole: tuple[int, int], size: tuple[int, int]) -> Array:
        """RGB of ``size``; ``whole``: the size of the whole frame with square pixels."""
        from av.video.reformatter import Interpolation

        # One pass converts colours and averages over areas, in half the time of two passes. Without the chroma flags
        # swscale would drop every second chroma sample.
        flags = Interpolation.AREA | Interpolation.ACCURATE_RND
        if size[0] < whole[0]:
            flags |= Interpolation.FULL_CHR_H_INP | Interpolation.FULL_CHR_H_INT
        return self._reformatter.reformat(
            frame,
            width=size[0],
            height=size[1],
            format="rgb24",
            src_colorspace=_matrix(frame),
            src_color_range=_range(frame),
            dst_color_range=_FULL,
            interpolation=flags,
            threads=1,
        ).to_ndarray()


def _matrix(frame: av.VideoFrame) -> int:
    return _MATRICES.get(int(frame.colorspace), _BT709 if frame.height >= _HD_LINES else _BT601)


def _range(frame: av.VideoFrame) -> int:
    if int(frame.color_range) in (_LIMITED, _FULL):
        return int(frame.color_range)
    full = frame.format.is_rgb or frame.format.name.startswith("yuvj") or frame.format.name == "pal8"
    return _FULL if full else _LIMITED
