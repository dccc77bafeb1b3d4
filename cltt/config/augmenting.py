"""Settings of augmentation: a preset, and values that differ from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from cltt.config.fields import check_fields, require, setting


class Augment(NamedTuple):
    """How frames are augmented, in the order of the attributes. The default changes nothing.

    Attributes:
        crop_area: smallest and largest fraction of a frame's area that a crop covers; None: no crop.
        flip: probability that a frame is mirrored left to right.
        jitter: largest relative change of brightness, contrast and saturation, and largest turn of the hue as a
            fraction of the circle; applied with probability 0.8.
        grey, blur: probability that a frame loses its colour, and that it is blurred.
    """

    crop_area: tuple[float, float] | None = None
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    grey: float = 0.0
    blur: float = 0.0


PRESETS = {
    "none": Augment(),
    "crop": Augment(crop_area=(0.2, 1.0), flip=0.5),
    "simclr": Augment(crop_area=(0.2, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), grey=0.2, blur=0.5),
}


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """A preset of :class:`Augment`, and values that replace the preset's (None: the preset's).

    Raises SettingsError for a value out of its range.
    """

    augment: str = setting(
        "none", "augmentation that the next flags change; with none, time is the augmentation", choices=tuple(PRESETS)
    )
    crop_area: tuple[float, float] | None = setting(
        None,
        "crops cover a fraction from A to B of a frame's area (crop, simclr: 0.2 1)",
        within=(1e-3, 1),
        metavar=("A", "B"),
    )
    flip: float | None = setting(None, "probability that a frame is mirrored (crop, simclr: 0.5)", within=(0, 1))
    jitter: tuple[float, float, float, float] | None = setting(
        None,
        "with probability 0.8, brightness, contrast and saturation change by a factor of 1 +- this, and hue by up to "
        "this fraction of the circle (simclr: 0.8 0.8 0.8 0.2)",
        within=(0, 1),
        metavar=("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"),
    )
    grey: float | None = setting(None, "probability that a frame loses its colour (simclr: 0.2)", within=(0, 1))
    blur: float | None = setting(
        None, "probability that a frame is blurred, by 0.1 to 2 pixels (simclr: 0.5)", within=(0, 1)
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.crop_area is not None:
            low, high = self.crop_area
            require(low <= high, f"crop_area is {low} {high}; give the smaller fraction first")
        if self.jitter is not None:
            hue = self.jitter[3]
            require(hue <= 0.5, f"jitter turns hue by up to {hue}; it must be from 0 to 0.5, half the circle")
        for name, value in PRESETS[self.augment]._asdict().items():
            if getattr(self, name) == value:  # so equal augmentations are saved alike
                object.__setattr__(self, name, None)

    @property
    def augmentation(self) -> Augment:
        """The augmentation: the preset with the given values."""
        given = {field.name: getattr(self, field.name) for field in fields(AugmentSettings) if field.name != "augment"}
        return PRESETS[self.augment]._replace(**{name: value for name, value in given.items() if value is not None})
