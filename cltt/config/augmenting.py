"""Settings of augmentation: a preset, and what differs from it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

from cltt.config.fields import check_fields, require, setting


class Augment(NamedTuple):
    """How frames are augmented, in this order. The default changes nothing.

    Attributes:
        crop_area: least and most share of a frame's area that a crop covers, resized to the batch's size; None: none.
        flip: share of frames mirrored left to right.
        jitter: brightness, contrast and saturation are changed by up to these factors, hue by up to this share of a
            full turn, in 0.8 of the frames.
        grey, blur: shares of frames that lose their colour, that are blurred.
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
    """A preset of :class:`Augment` and the values that differ from it; None: as the preset has it.

    Raises SettingsError for a value out of its range.
    """

    augment: str = setting(
        "none", "augmentation that the next flags change; with none, time is the augmentation", choices=tuple(PRESETS)
    )
    crop_area: tuple[float, float] | None = setting(
        None,
        "crops cover from A to B of a frame's area (crop, simclr: 0.2 1)",
        within=(1e-3, 1),
        metavar=("A", "B"),
    )
    flip: float | None = setting(None, "share of frames that are mirrored (crop, simclr: 0.5)", within=(0, 1))
    jitter: tuple[float, float, float, float] | None = setting(
        None,
        "in 0.8 of the frames brightness, contrast and saturation change by a factor of 1 +- this, hue by up to this "
        "share of a turn (simclr: 0.8 0.8 0.8 0.2)",
        within=(0, 1),
        metavar=("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"),
    )
    grey: float | None = setting(None, "share of frames without colour (simclr: 0.2)", within=(0, 1))
    blur: float | None = setting(None, "share of frames blurred, by 0.1 to 2 pixels (simclr: 0.5)", within=(0, 1))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.crop_area is not None:
            low, high = self.crop_area
            require(low <= high, f"crop_area is {low} {high}; give the smaller share first")
        if self.jitter is not None:
            hue = self.jitter[3]
            require(hue <= 0.5, f"jitter turns hue by up to {hue}; it must be from 0 to 0.5, half a turn either way")
        for name, value in PRESETS[self.augment]._asdict().items():
            if getattr(self, name) == value:  # what is the same is saved the same
                object.__setattr__(self, name, None)

    @property
    def augmentation(self) -> Augment:
        """The preset with the values that were given."""
        given = {field.name: getattr(self, field.name) for field in fields(AugmentSettings) if field.name != "augment"}
        return PRESETS[self.augment]._replace(**{name: value for name, value in given.items() if value is not None})
