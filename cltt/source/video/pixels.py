"""A decoded frame as upright 8-bit RGB with square pixels, by what the stream says of itself.

Matrix and range come from the frame's tags (ITU-T H.273). A frame without a matrix is BT.709 from 720 lines upward and
BT.601 below, as players take it; one without a range is limited.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cltt.source.video.streams import WHOLE, Crop

if TYPE_CHECKING:
    import av

Array = np.ndarray[Any, Any]
# H.273 matrix coefficients -> swscale's numbers: BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020 twice.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_BT709, _BT601 = 1, 5
_LIMITED, _FULL = 1, 2
_HD_LINES = 720
_MOST_STRETCH = 16  # a pixel more oblong than this is a writing error


class Turn(NamedTuple):
    """One of the eight ways to lay a picture: swap rows and columns first, then mirror."""

    swap: bool
    left_right: bool
    up_down: bool

    def apply(self, picture: Array) -> Array:
        if self.swap:
            picture = picture.swapaxes(0, 1)
        return np.ascontiguousarray(picture[:: -1 if self.up_down else 1, :: -1 if self.left_right else 1])


AS_IT_IS = Turn(False, False, False)


def turn_of(frame: av.VideoFrame) -> Turn:
    """What the display matrix asks for, to a quarter turn (ISO 14496-12, 6.2.2: x' = ax + cy, y' = bx + dy)."""
    found: Any = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return AS_IT_IS
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(found))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Turn(True, c < 0, b < 0)
    return Turn(False, a < 0, d < 0)


def square_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """(width, height) with square pixels: the lines stay."""
    if not aspect or not 1 / _MOST_STRETCH <= aspect <= _MOST_STRETCH:
        return width, height
    return max(1, round(width * aspect)), height


def shrunk_size(width: int, height: int, short: int | None) -> tuple[int, int]:
    """(width, height) with the short side at ``short``; a frame already that small stays as it is."""
    scale = 1 if short is None else short / min(width, height)
    return (width, height) if scale >= 1 else (max(1, round(width * scale)), max(1, round(height * scale)))


class Upright:
    """Turns the frames of one stream into pixels; not for several threads at once."""

    def __init__(self, aspect: Fraction | None, resize_short: int | None = None, crop: Crop = WHOLE) -> None:
        from av.video.reformatter import VideoReformatter

        self._aspect = aspect
        self._crop = crop
        self._short = resize_short
        self._reformatter = VideoReformatter()

    def rgb(self, frame: av.VideoFrame) -> tuple[Array, tuple[int, int]]:
        """(uint8 [height, width, 3], (width, height) of the upright frame before any shrinking)."""
        turn = turn_of(frame)
        if self._crop != WHOLE:
            frame = self._cropped(frame)
        square = square_size(frame.width, frame.height, self._aspect)
        pixels = self._converted(frame, square, shrunk_size(*square, self._short))
        return turn.apply(pixels), (square[1], square[0]) if turn.swap else square

    def _cropped(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The part that is shown, in RGB; the whole frame if none of it is."""
        import av

        size = frame.width, frame.height
        width, height = self._crop.size(*size)
        if min(width, height) <= 0:
            return frame
        rows, columns = slice(self._crop.top, self._crop.top + height), slice(self._crop.left, self._crop.left + width)
        pixels = self._converted(frame, size, size)[rows, columns]
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")

    def _converted(self, frame: av.VideoFrame, whole: tuple[int, int], size: tuple[int, int]) -> Array:
        """RGB of ``size``; ``whole`` is the frame's own with square pixels."""
        from av.video.reformatter import Interpolation

        # Shrinking averages over areas and is done in one pass with the change of colours: half the time of two.
        # Without the flags for chroma every second sample of it would be dropped.
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
