"""Where a frame lies in its slot: the kept part, its scale and margin."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.config import require

# A crop is drawn from a frame a little larger than the batch's (256 lines for 224, as torchvision's recipes do) ...
MARGIN = 256 / 224
# ... whose long side is cut to 4:3, so that every frame fits one slot size.
LONGEST = 4 / 3


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Which part of a frame is kept, and at what size.

    Without ``margin``: the central square of the short side, at S x S. With it (for augmentations that crop): short
    side round(S*256/224), long side up to 4:3, cut at the centre.
    """

    image_size: int
    margin: bool = False

    def __post_init__(self) -> None:
        require(self.image_size >= 1, f"image_size is {self.image_size}; it must be at least 1")

    @property
    def short(self) -> int:
        """Short side of a kept frame, in pixels."""
        return round(self.image_size * MARGIN) if self.margin else self.image_size

    @property
    def long(self) -> int:
        """Largest long side of a kept frame, in pixels."""
        return round(self.short * LONGEST) if self.margin else self.image_size

    @property
    def pixels(self) -> int:
        """P: pixels a slot must hold."""
        return self.short * self.long

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width), whole pixels, of the part kept of a ``height`` x ``width`` frame."""
        side = min(height, width)
        long = min(max(height, width), round(side * LONGEST)) if self.margin else side
        kept = (side, long) if width >= height else (long, side)
        return (height - kept[0]) // 2, (width - kept[1]) // 2, *kept

    def kept_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) at which a ``height`` x ``width`` frame is kept."""
        _, _, box_height, box_width = self.box(height, width)
        side = min(box_height, box_width)
        long = min(round(self.short * max(box_height, box_width) / side), self.long)
        return (self.short, long) if box_width >= box_height else (long, self.short)
