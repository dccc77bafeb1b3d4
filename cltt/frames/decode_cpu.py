"""JPEG bytes to the pixels of a stored frame on the CPU: which part is stored, and the resize all decoders agree on.

Nothing here imports torch, so that looking at a frame starts at once.

Legend: S image_size; h, w height and width of a stored frame; P most pixels of a stored frame (S*S without margin).
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from cltt.frames.geometry import Framing, Rectangle
from cltt.region import Box
from cltt.source import image, reduced
from cltt.source import jpeg as jpeg_markers

# Shrinking by up to this factor, plain bilinear and the anti-aliased filter differ by less than 1/255 on average.
PLAIN_SHRINK = 1.25
# From this factor on the triangle of DALI's filter is built in two passes; in between, area averaging is closer.
TRIANGLE_SHRINK = 2.0
_TRIANGLE = np.array([1, 3, 3, 1], np.float32) / 8
# From this deviation on, in pixels, a blur is done at half size.
HALF_SIGMA = 1.8
# A reduced picture is an average over squares, narrower than the triangle; where no resize follows, this widens it.
_WIDEN = np.array([1, 14, 1], np.float32) / 16


def frame_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG that is to be decoded.

    ValueError (InvalidImage) for what its markers forbid before memory is taken: no size, more than MAX_PIXELS pixels,
    more scans than a decoder gets through.
    """
    info = jpeg_markers.jpeg_info(data)  # 7 us; simplejpeg's own takes 3, but fails at 4:4:1 and tells no coding
    image.check_pixels(info.width, info.height, image.MAX_PIXELS)
    jpeg_markers.check_scans(data, info)
    return info.height, info.width


class Cut(NamedTuple):
    """How frames of one shape, with one box, are cut.

    Attributes:
        whole: all of the frame is stored, at its own size.
        reduction: how many times smaller they are decoded.
        rows, columns: of the decoded frame, those that are stored.
        stored: (h, w) at which they are.
        clear: of the stored frame, what is not blurred; None: nothing is.
    """

    whole: bool
    reduction: int
    rows: slice
    columns: slice
    stored: tuple[int, int]
    clear: Rectangle | None


class FrameDecoder:
    """libjpeg-turbo and OpenCV; any number of threads may call one decoder (both let other threads run)."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        # The frames of a data set have few shapes, and their arithmetic in Python would cost 10 us of 400 a frame.
        self._cut = lru_cache(maxsize=1024)(self._cut_anew)
        self._scratch = threading.local()

    def frame(self, jpeg: bytes, look_at: Box | None = None) -> np.ndarray:
        """One decoded frame, uint8 [h, w, 3], in memory of its own. ValueError for what libjpeg calls corrupt."""
        slot = np.empty(self.framing.pixels * 3, np.uint8)
        height, width = self.decode_into(jpeg, slot, look_at)
        return slot[: height * width * 3].reshape(height, width, 3)

    def decode_into(self, jpeg: bytes, slot: np.ndarray, look_at: Box | None = None) -> tuple[int, int]:
        """Decode into ``slot`` uint8 [P*3]; returns (h, w). ValueError for what libjpeg calls corrupt.

        ``look_at``: the frame's box, if the framing's region is of boxes and it has one.
        """
        height, width = frame_size(jpeg)
        cut = self._cut(height, width, look_at)
        target = slot[: cut.stored[0] * cut.stored[1] * 3].reshape(*cut.stored, 3)
        if cut.whole:
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=target)
        else:
            buffer = self._buffer((height // cut.reduction + 1) * (width // cut.reduction + 1) * 3)
            decoded = reduced.decode(jpeg, height, width, cut.reduction, buffer)
            self._resize(decoded[cut.rows, cut.columns], target, cut.reduction)
        self._blur(target, cut.clear)
        return cut.stored

    def fit(self, frame: np.ndarray) -> np.ndarray:
        """A frame decoded elsewhere, RGB uint8 [., ., 3] at its full size -> uint8 [h, w, 3], as :meth:`frame`."""
        top, left, height, width = self.framing.box(*frame.shape[:2])
        target = np.empty((*self.framing.stored_size(*frame.shape[:2]), 3), np.uint8)
        shrink(np.ascontiguousarray(frame[top : top + height, left : left + width]), target)
        self._blur(target, self.framing.clear(*frame.shape[:2]))
        return target

    def _resize(self, part: np.ndarray, target: np.ndarray, reduction: int) -> None:
        """``part``, decoded ``reduction`` times smaller, into ``target`` uint8 [h, w, 3]."""
        if reduction > 1 and part.shape == target.shape:
            cv2.sepFilter2D(part, -1, _WIDEN, _WIDEN, dst=target, borderType=cv2.BORDER_REPLICATE)
        else:
            shrink(part, target)

    def _blur(self, target: np.ndarray, clear: Rectangle | None) -> None:
        if clear is not None and self.framing.blur is not None:
            blur_outside(target, clear, *self.framing.blur)

    def _cut_anew(self, height: int, width: int, look_at: Box | None) -> Cut:
        step = self.framing.reduction(height, width)
        top, left, rows, columns = (number // step for number in self.framing.box(height, width, look_at))
        stored = self.framing.stored_size(height, width)
        whole = (rows, columns) == stored == (height, width)
        clear = self.framing.clear(height, width, look_at)
        return Cut(whole, step, slice(top, top + rows), slice(left, left + columns), stored, clear)

    def _buffer(self, size: int) -> np.ndarray:
        """This thread's memory for one decoded frame, at least uint8 [size]."""
        held: np.ndarray | None = getattr(self._scratch, "bytes", None)
        if held is None or held.size < size:
            held = self._scratch.bytes = np.empty(size, np.uint8)
        return held


def shrink(source: np.ndarray, target: np.ndarray) -> None:
    """Resize ``source`` uint8 [., ., 3] into ``target`` uint8 [h, w, 3] as DALI's anti-aliased linear resize does.

    That filter is a triangle as wide as the shrink factor. Near 1 it is bilinear; from 2 on it is built from area
    averages at twice the target size, weighted 1:3:3:1. Mean difference on real frames below 1.2/255 at any factor
    (bilinear: up to 10/255; area averaging: up to 2.6/255).
    """
    height, width = target.shape[:2]
    factor = min(source.shape[0] / height, source.shape[1] / width)
    if factor <= PLAIN_SHRINK:
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    elif factor < TRIANGLE_SHRINK:
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_AREA)
    else:
        double = cv2.resize(source, (2 * width, 2 * height), interpolation=cv2.INTER_AREA)
        padded = cv2.copyMakeBorder(double, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        smooth = cv2.sepFilter2D(padded, -1, _TRIANGLE, _TRIANGLE, anchor=(0, 0))
        target[:] = smooth[0 : 2 * height : 2, 0 : 2 * width : 2]


def blur_outside(frame: np.ndarray, clear: Rectangle, taps: int, sigma: float) -> None:
    """Blur ``frame`` uint8 [h, w, 3] by a Gaussian of ``taps`` pixels, in place, and leave ``clear`` as it is.

    At its edges the frame goes on as its mirror image, without the edge twice, as in DALI's. From a deviation of
    HALF_SIGMA on it is blurred at half its size, for a fifth of the time and within 0.5/255 on average.
    """
    top, left, height, width = clear
    inside = frame[top : top + height, left : left + width]
    kept = inside.copy()
    if sigma < HALF_SIGMA:
        cv2.GaussianBlur(frame, (taps, taps), sigma, dst=frame)
    else:
        _blur_at_half_size(frame, taps, sigma)
    inside[:] = kept


def _blur_at_half_size(frame: np.ndarray, taps: int, sigma: float) -> None:
    height, width = frame.shape[:2]
    odd = height % 2, width % 2
    even = cv2.copyMakeBorder(frame, 0, odd[0], 0, odd[1], cv2.BORDER_REFLECT_101) if any(odd) else frame
    half = cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA)
    # Averaging over 2 x 2 pixels has a variance of 1/4 pixel, and going back by interpolation one of 3/4.
    window = 2 * (taps // 4) + 1
    cv2.GaussianBlur(half, (window, window), math.sqrt(sigma**2 - 1) / 2, dst=half)
    cv2.resize(half, even.shape[1::-1], dst=even, interpolation=cv2.INTER_LINEAR)
    if even is not frame:
        frame[:] = even[:height, :width]
