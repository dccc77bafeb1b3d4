"""Where a frame lies in its slot: the part that is stored, its scale and margin."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.config import require
from cltt.source.reduced import largest_reduction

# A crop is drawn from a frame a little larger than the batch's (256 lines for 224, as torchvision's recipes do) ...
MARGIN = 256 / 224
# ... whose long side is cut to 4:3, so that every frame fits one slot size.
LONGEST = 4 / 3


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Which part of a frame is stored, and at what size.

    Without ``margin``: the central square of the short side, at S x S. With it (for augmentations that crop): short
    side round(S*256/224), long side up to 4:3, cut at the centre.

    A frame at least 2, 4 or 8 times as large as it is stored is decoded at a half, quarter or eighth of its size. There
    the part begins and ends at whole pixels of the reduced picture, which takes less than a stored pixel off its edges;
    else every decoder would have to sample between them.
    """

    image_size: int
    margin: bool = False

    def __post_init__(self) -> None:
        require(self.image_size >= 1, f"image_size is {self.image_size}; it must be at least 1")

    @property
    def short(self) -> int:
        """Short side of a stored frame, in pixels."""
        return round(self.image_size * MARGIN) if self.margin else self.image_size

    @property
    def long(self) -> int:
        """Largest long side of a stored frame, in pixels."""
        return round(self.short * LONGEST) if self.margin else self.image_size

    @property
    def pixels(self) -> int:
        """P: pixels a slot must hold."""
        return self.short * self.long

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width), whole pixels, of the part stored of a ``height`` x ``width`` frame.

        All are multiples of :meth:`reduction`.
        """
        step = self.reduction(height, width)
        rows, columns = (side // step * step for side in self._shape(height, width))
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

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the part stored, before it is fitted to the reduction."""
        side = min(height, width)
        long = min(max(height, width), round(side * LONGEST)) if self.margin else side
        return (side, long) if width >= height else (long, side)
