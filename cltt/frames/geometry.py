"""Where a frame lies in its slot: the part that is stored, its scale and margin, and what of it stays clear."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.config import require
from cltt.region import CENTER, NO_REGION, Box, Region
from cltt.source.libjpeg import largest_reduction

# A crop is drawn from a frame a little larger than the batch's (256 lines for 224, as torchvision's recipes do) ...
MARGIN = 256 / 224
# ... whose long side is cut to 4:3, so that every frame fits one slot size.
LONGEST = 4 / 3
# Outside the region: 31 taps of deviation 5 on a frame of 256 lines.
BLUR_RADIUS, BLUR_SIGMA = 15 / 256, 5 / 256

Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Which part of a frame is stored, and at what size.

    Without ``margin``: the central square of the short side, at S x S. With it (for augmentations that crop): short
    side round(S*256/224), long side up to 4:3, cut at the centre.

    A ``region`` that crops: a square of ``region.scale`` times the short side about the middle of the frame's box,
    shifted into the frame; with ``margin`` at round(S*256/224), so that crops are drawn inside it. A region that blurs
    changes nothing of this: all of the stored frame outside the box is blurred.

    A part at least 2, 4 or 8 times as large as it is stored is decoded at a half, quarter or eighth of its size. There
    it begins and ends at whole pixels of the reduced picture, which takes less than a stored pixel off its edges;
    else every decoder would have to sample between them.
    """

    image_size: int
    margin: bool = False
    region: Region = NO_REGION

    def __post_init__(self) -> None:
        require(self.image_size >= 1, f"image_size is {self.image_size}; it must be at least 1")

    @property
    def short(self) -> int:
        """Short side of a stored frame, in pixels."""
        return round(self.image_size * MARGIN) if self.margin else self.image_size

    @property
    def long(self) -> int:
        """Largest long side of a stored frame, in pixels."""
        return self.short if self._is_square else round(self.short * LONGEST)

    @property
    def pixels(self) -> int:
        """P: pixels a slot must hold."""
        return self.short * self.long

    @property
    def blur(self) -> tuple[int, float] | None:
        """Taps and deviation, in pixels of a stored frame, of the Gaussian outside the region; None: no blur."""
        if self.region.effect != "blur":
            return None
        return 2 * round(self.short * BLUR_RADIUS) + 1, self.short * BLUR_SIGMA

    def box(self, height: int, width: int, look_at: Box | None = None) -> Rectangle:
        """(top, left, height, width), whole pixels, of the part stored of a ``height`` x ``width`` frame.

        ``look_at``: the frame's box, if it has one. All are multiples of :meth:`reduction`.
        """
        step = self.reduction(height, width)
        rows, columns = (side // step * step for side in self._shape(height, width))
        if self.region.crops:
            x1, y1, x2, y2 = self._looked_at(look_at)
            top = _first((y1 + y2) / 2 * height, rows, height, step)
            left = _first((x1 + x2) / 2 * width, columns, width, step)
        else:
            top, left = (height - rows) // 2 // step * step, (width - columns) // 2 // step * step
        return top, left, rows, columns

    def reduction(self, height: int, width: int) -> int:
        """1, 2, 4 or 8: how many times smaller a ``height`` x ``width`` frame can be decoded without falling short."""
        pairs = zip(self._shape(height, width), self.stored_size(height, width), strict=True)
        return largest_reduction(min(part // stored for part, stored in pairs))

    def stored_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) at which a ``height`` x ``width`` frame is stored."""
        rows, columns = self._shape(height, width)
        long = min(round(self.short * max(rows, columns) / min(rows, columns)), self.long)
        return (self.short, long) if columns >= rows else (long, self.short)

    def clear(self, height: int, width: int, look_at: Box | None = None) -> Rectangle | None:
        """(top, left, height, width), pixels of the stored frame, of what is left as it is; None: all is.

        The frame's box; of one less than a stored pixel wide or high, a point, the square that ``crop`` would keep.
        Height or width 0: nothing is, for the box lies outside the part stored.
        """
        if not self.region.changes_outside:
            return None
        part = self.box(height, width)
        down, across = (side / pixels for side, pixels in zip(self.stored_size(height, width), part[2:], strict=True))
        x1, y1, x2, y2 = self._looked_at(look_at)
        if (x2 - x1) * width * across < 1 or (y2 - y1) * height * down < 1:
            x1, y1, x2, y2 = self._square((x1 + x2) / 2, (y1 + y2) / 2, height, width)
        top, bottom = _cut(y1 * height - part[0], y2 * height - part[0], part[2], down)
        left, right = _cut(x1 * width - part[1], x2 * width - part[1], part[3], across)
        return top, left, bottom - top, right - left

    def _looked_at(self, look_at: Box | None) -> Box:
        return CENTER if look_at is None or self.region.kind == "center" else look_at

    def _square(self, x: float, y: float, height: int, width: int) -> Box:
        """The square about a point, shifted into the frame."""
        side = self._side(height, width)
        left, top = min(max(x * width - side / 2, 0), width - side), min(max(y * height - side / 2, 0), height - side)
        return left / width, top / height, (left + side) / width, (top + side) / height

    def _side(self, height: int, width: int) -> int:
        """Side of that square, in pixels of the frame."""
        return max(1, round((self.region.scale or 1) * min(height, width)))

    @property
    def _is_square(self) -> bool:
        return self.region.crops or not self.margin

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the part stored, before it is fitted to the reduction."""
        side = self._side(height, width) if self.region.crops else min(height, width)
        long = side if self._is_square else min(max(height, width), round(side * LONGEST))
        return (side, long) if width >= height else (long, side)


def _first(middle: float, size: int, whole: int, step: int) -> int:
    """Where ``size`` pixels about ``middle`` begin that lie within 0..``whole``: a multiple of ``step``."""
    return min(max(round((middle - size / 2) / step), 0), (whole - size) // step) * step


def _cut(first: float, stop: float, size: int, scale: float) -> tuple[int, int]:
    """``first`` to ``stop`` of ``size`` pixels, as pixels after a resize by ``scale``; both ends equal: nothing."""
    low, high = (round(min(max(end, 0), size) * scale) for end in (first, stop))
    return low, high
