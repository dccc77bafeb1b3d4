"""The region of a frame that the network sees: its settings, and the boxes of frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cltt.errors import SettingsError
from cltt.text import counted

REGIONS = ("none", "center", "boxes")
EFFECTS = ("blur", "crop")
SCALES = (0.01, 1.0)
BOXES_OF_SHARDS = (
    "region is boxes, but only shards built with build_shards --boxes csv:FILE hold boxes; give --shards with such a "
    "set, or --region center"
)
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 as fractions of width and height
CENTER: Box = (0.25, 0.25, 0.75, 0.75)


class Boxed(Protocol):
    """The part of a data set that is used here."""

    has_boxes: bool

    def frame_boxes(self, frame_ids: np.ndarray) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Region:
    """A box in each frame, and what happens to the pixels outside it.

    Attributes:
        kind: ``none``; ``center``, from a quarter to three quarters of width and height; or ``boxes``, those of the
            data set, and ``center`` for a frame without one.
        effect: ``blur`` the pixels outside the box, or ``crop`` a square around its middle; None: blur, if any.
        scale: side of that square, as a fraction of the frame's short side; also the side of the square that ``blur``
            leaves clear around a point, which is a box without extent. None: 0.5 if there is such a square.

    :class:`cltt.config.ViewSettings` checks single values. Raises SettingsError for a value without effect.
    """

    kind: str = "none"
    effect: str | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        self._check_together()
        if self.kind != "none":
            object.__setattr__(self, "effect", self.effect or "blur")
            if self._has_square:
                object.__setattr__(self, "scale", self.scale or 0.5)

    @property
    def _has_square(self) -> bool:
        return self.effect == "crop" or self.kind == "boxes"

    def _check_together(self) -> None:
        for name, value in (("effect", self.effect), ("scale", self.scale)):
            if value is not None and self.kind == "none":
                raise SettingsError(f"region_{name} is {value}, but there is no region; give --region center or boxes")
        if self.scale is not None and not self._has_square:
            raise SettingsError(
                f"region_scale is {self.scale}, but the clear center has a fixed size; leave it out, or give "
                "--region-effect crop"
            )

    @property
    def crops(self) -> bool:
        """Whether the frame is cropped to a square."""
        return self.effect == "crop"

    @property
    def changes_outside(self) -> bool:
        """Whether the whole frame is kept, with other pixels outside the box."""
        return self.effect not in (None, "crop")

    @property
    def done(self) -> str:
        """The effect in words, for a caption."""
        return f"a square of {self.scale} short sides about it" if self.crops else f"all outside it: {self.effect}"

    def check_boxes(self, dataset: Boxed) -> None:
        """Raise SettingsError if the region needs boxes and ``dataset`` has none."""
        if self.kind == "boxes" and not dataset.has_boxes:
            raise SettingsError(BOXES_OF_SHARDS)


NO_REGION = Region()


def boxes_of(dataset: Boxed, frame_ids: np.ndarray, region: Region) -> list[Box | None] | None:
    """The box of each frame [n], None for a frame without one; None if the region does not use boxes."""
    rows = dataset.frame_boxes(frame_ids) if region.kind == "boxes" else None
    if rows is None:
        return None
    return [None if math.isnan(x1) else (x1, y1, x2, y2) for x1, y1, x2, y2 in rows.tolist()]


def without_box_line(without: int, frames: int) -> str:
    """A line of output: how many of ``frames`` frames have no box (``without``)."""
    have = "has" if without == 1 else "have"
    return f"boxes: {without:,} of {counted(frames, 'frame')} {have} none and take the center"
