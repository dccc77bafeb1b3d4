"""OpenCV's filters as all decoders and augmentations use them: near DALI's in their pixels, and quick.

Nothing here imports torch. Legend: h, w height and width of a frame.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import cv2
import numpy as np

from cltt.frames.geometry import Rectangle

Pixels = np.ndarray[Any, Any]
# Shrinking by up to this factor, plain bilinear and the anti-aliased filter differ by less than 1/255 on average.
PLAIN_SHRINK = 1.25
# From this factor on the triangle of DALI's filter is built in two passes; in between, area averaging is closer.
TRIANGLE_SHRINK = 2.0
_TRIANGLE = np.array([1, 3, 3, 1], np.float32) / 8
# From this deviation on, in pixels, a blur is done at half size.
HALF_SIGMA = 1.8
# A reduced picture is an average over squares, narrower than the triangle; where no resize follows, this widens it.
_WIDEN = np.array([1, 14, 1], np.float32) / 16


class QuickKernels(threading.local):
    """``with quick_kernels:`` OpenCV resizes by Intel's kernels, where it was built with them.

    They are within 1/255 of its own and up to five times as fast. OpenCV keeps that choice a thread, and it is the
    caller's, so it is put back. Each time takes three calls that let go of the interpreter's lock: go in once for many
    frames. May be entered again inside.
    """

    def __init__(self) -> None:
        self._depth, self._before = 0, False

    def __enter__(self) -> None:
        if not self._depth:
            self._before = cv2.ipp.useIPP_NotExact()
            cv2.ipp.setUseIPP_NotExact(True)
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            cv2.ipp.setUseIPP_NotExact(self._before)


quick_kernels = QuickKernels()


def resize(source: Pixels, target: Pixels, interpolation: int) -> None:
    """Resize ``source`` uint8 [., ., 3] into ``target`` uint8 [h, w, 3], by the quick kernels."""
    with quick_kernels:
        cv2.resize(source, target.shape[1::-1], dst=target, interpolation=interpolation)


def shrink(source: Pixels, target: Pixels) -> None:
    """Resize ``source`` uint8 [., ., 3] into ``target`` uint8 [h, w, 3] as DALI's anti-aliased linear resize does.

    That filter is a triangle as wide as the shrink factor. Near 1 it is bilinear; from 2 on it is built from area
    averages at twice the target size, weighted 1:3:3:1. Mean difference on real frames below 1.2/255 at any factor
    (bilinear: up to 10/255; area averaging: up to 2.6/255).
    """
    height, width = target.shape[:2]
    factor = min(source.shape[0] / height, source.shape[1] / width)
    if factor <= PLAIN_SHRINK:
        resize(source, target, cv2.INTER_LINEAR)
    elif factor < TRIANGLE_SHRINK:
        resize(source, target, cv2.INTER_AREA)
    else:
        double = np.empty((2 * height, 2 * width, 3), np.uint8)
        resize(source, double, cv2.INTER_AREA)
        padded = cv2.copyMakeBorder(double, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        smooth = cv2.sepFilter2D(padded, -1, _TRIANGLE, _TRIANGLE, anchor=(0, 0))
        target[:] = smooth[0 : 2 * height : 2, 0 : 2 * width : 2]


def widen(source: Pixels, target: Pixels) -> None:
    """``source`` uint8 [h, w, 3], a reduced picture at the size wanted, as :func:`shrink` would have it."""
    cv2.sepFilter2D(source, -1, _WIDEN, _WIDEN, dst=target, borderType=cv2.BORDER_REPLICATE)


def gaussian(frame: Pixels, taps: int, sigma: float) -> None:
    """Blur ``frame`` uint8 [h, w, 3] in place by a Gaussian of ``taps`` pixels.

    At its edges the frame goes on as its mirror image, without the edge twice, as in DALI's. Within 1/255 of OpenCV's
    GaussianBlur, which is exact to the bit on every machine and takes twice as long; a wide one that is not cut off
    within three deviations is done at half the size, within 0.5/255 on average.
    """
    if sigma >= HALF_SIGMA and taps >= 6 * sigma:
        _blur_at_half_size(frame, taps, sigma)
    else:
        _blur_fully(frame, taps, sigma)


def _blur_fully(frame: Pixels, taps: int, sigma: float) -> None:
    kernel = cv2.getGaussianKernel(taps, sigma, cv2.CV_32F)
    cv2.sepFilter2D(frame, -1, kernel, kernel, dst=frame)


def _blur_at_half_size(frame: Pixels, taps: int, sigma: float) -> None:
    height, width = frame.shape[:2]
    odd = height % 2, width % 2
    even = cv2.copyMakeBorder(frame, 0, odd[0], 0, odd[1], cv2.BORDER_REFLECT_101) if any(odd) else frame
    half = np.empty((even.shape[0] // 2, even.shape[1] // 2, 3), np.uint8)
    resize(even, half, cv2.INTER_AREA)
    # Averaging over 2 x 2 pixels has a variance of 1/4 pixel, and going back by interpolation one of 3/4.
    _blur_fully(half, 2 * (taps // 4) + 1, math.sqrt(sigma**2 - 1) / 2)
    resize(half, even, cv2.INTER_LINEAR)
    if even is not frame:
        frame[:] = even[:height, :width]


def blur_outside(frame: Pixels, clear: Rectangle, taps: int, sigma: float) -> None:
    """Blur ``frame`` uint8 [h, w, 3] by :func:`gaussian` in place, and leave ``clear`` as it is."""
    top, left, height, width = clear
    inside = frame[top : top + height, left : left + width]
    kept = inside.copy()
    gaussian(frame, taps, sigma)
    inside[:] = kept


class Scratch(threading.local):
    """Memory kept in each thread from one :meth:`take` to the next: new memory costs more than what is done with it."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, *shape: int) -> Pixels:
        """uint8 of ``shape``, of any values; it is the same memory each time."""
        size = math.prod(shape)
        if self._memory.size < size:
            self._memory = np.empty(size, np.uint8)
        return self._memory[:size].reshape(shape)


_scratch = Scratch()


def turn_hue(frame: Pixels, turn: float) -> None:
    """Turn the hue of ``frame`` uint8 [h, w, 3] RGB in place by ``turn``, from -0.5 to 0.5 of a full turn, in HSV.

    Every value is within 1/255 of torchvision's adjust_hue, which converts to HSV and back.

    A sixth of a turn makes channel c ``most + least - channel c + 1``, and two sixths make it channel c + 2. In between
    it is ``start + end`` less the middle one of three: ``start``, ``end`` and a bound, ``low`` where its value falls
    and ``high`` where it rises. Sums may overflow a byte: what is left of them at the end fits again.
    """
    sixths = 6 * turn % 6
    first = int(sixths)
    share = sixths - first
    planes = _scratch.take(17, *frame.shape[:2])
    channels, (most, least, both, low) = planes[:4], planes[4:8]
    other, middle, rising = planes[8:11], planes[11:14], planes[14:]
    cv2.split(frame, [channels[(channel - first) % 3] for channel in range(3)])
    channels[3] = channels[0]
    np.maximum(np.maximum(channels[0], channels[1], out=most), channels[2], out=most)
    np.minimum(np.minimum(channels[0], channels[1], out=least), channels[2], out=least)
    np.add(most, least, out=both)
    cv2.addWeighted(least, 1 - share, most, share, 0, dst=low)
    high = np.subtract(both, low, out=most)
    start, end = channels[:3], channels[1:]
    if first % 2:
        start = np.subtract(both, start, out=other)
    else:
        end = np.subtract(both, end, out=other)
    np.minimum(np.maximum(end, low, out=middle), start, out=middle)
    np.maximum(middle, np.minimum(end, high, out=rising), out=middle)
    np.subtract(np.add(start, end, out=rising), middle, out=middle)
    cv2.merge(list(middle), frame)
