"""How the frames of a batch look: what a loader's state must agree on beside the order and the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cltt.config import AUGMENT_SCOPES, AUGMENTATIONS, NORMALISATIONS, require_one_of
from cltt.frames.geometry import Framing
from cltt.loader.fetch import Dataset
from cltt.region import Region
from cltt.sampling.order_state import require_unchanged

# What an older loader's state lacks was so.
_BEFORE = {"normalise": "imagenet", "region": "none"}


@dataclass(frozen=True)
class Look:
    """What is done to a frame on its way into a batch."""

    image_size: int
    augment: str
    augment_scope: str
    normalise: str
    region: Region

    def __post_init__(self) -> None:
        require_one_of("augment", self.augment, AUGMENTATIONS)
        require_one_of("augment_scope", self.augment_scope, AUGMENT_SCOPES)
        require_one_of("normalise", self.normalise, NORMALISATIONS)

    @property
    def framing(self) -> Framing:
        """An augmentation that crops needs a margin to crop from."""
        return Framing(image_size=self.image_size, margin=self.augment != "none", region=self.region)

    def state(self, dataset: Dataset) -> dict[str, Any]:
        """Plain values: the look and the data, boxes and all."""
        region = self.region
        values = {**asdict(self), "region": region.kind, "region_effect": region.effect, "region_scale": region.scale}
        return {"fingerprint": dataset.fingerprint, **values}

    def check_state(self, saved: dict[str, Any], dataset: Dataset) -> None:
        """SettingsError, naming each difference, if ``saved`` is of another look or other data."""
        require_unchanged("loader", {**_BEFORE, **saved}, self.state(dataset))
