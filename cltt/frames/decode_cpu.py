"""JPEG bytes to the pixels of a stored frame on the CPU: which part is stored, and at what size.

Nothing here imports torch, so that looking at a frame starts at once.

Legend: S image_size; h, w height and width of a stored frame; P most pixels of a stored frame (S*S without margin).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cltt.frames.filters import Scratch, blur_outside, shrink, widen
from cltt.frames.geometry import Framing, Rectangle
from cltt.region import Box
from cltt.source import image, libjpeg
from cltt.source import jpeg as jpeg_markers

_read_header = jpeg_markers.HeaderReader()


def frame_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG that is to be decoded.

    ValueError (InvalidImage) for what its markers forbid before memory is taken: no size, more than MAX_PIXELS pixels,
    more scans than a decoder gets through.
    """
    info = _read_header(data)  # libjpeg's own fails at 4:4:1 and leaves out whether it is progressive
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
        clear: the part of the stored frame that stays as it is, all else is blurred; None: nothing is blurred.
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
        self._scratch = Scratch()

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
            libjpeg.decode(jpeg, height, width, 1, target)
        else:
            buffer = self._scratch.take(height // cut.reduction + 1, width // cut.reduction + 1, 3)
            decoded = libjpeg.decode(jpeg, height, width, cut.reduction, buffer)
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
            widen(part, target)  # of the right size already, but sharper than by ``shrink``
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
