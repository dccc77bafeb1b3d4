"""The demo's settings."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.config import DEVICES, MAX_SEED, MIN_IMAGE_SIZE, WindowSettings, check_fields, require, setting
from cltt.demo.render import SOLIDS

RENDERED_SIZE = 96  # pixels; more than the network sees, for the pictures
WINDOWS = WindowSettings(window_size=5, frame_step=3, window_stride=2)


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo renders and how long it trains."""

    out: str = setting("outputs/demo", "folder for everything the demo makes")
    objects: int = setting(len(SOLIDS), "solids to tell apart", within=(2, len(SOLIDS)))
    frames: int = setting(40, "frames in a clip, give or take an eighth", within=(1, 100_000))
    image_size: int = setting(
        32, "side of the frames the network sees, in pixels", within=(MIN_IMAGE_SIZE, RENDERED_SIZE)
    )
    batch_size: int = setting(32, "windows per step", within=(1, 100_000))
    epochs: int = setting(6, "epochs of training", within=(1, 100_000))
    seed: int = setting(0, "seed of the clips, the weights and the order", within=(0, MAX_SEED))
    device: str = setting("auto", "auto takes cuda, else mps, else cpu", choices=DEVICES)
    fresh: bool = setting(False, "remove what an earlier demo made in --out, and start anew")

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.shortest >= WINDOWS.span,
            f"frames is {self.frames}, so the shortest clip may have {self.shortest}; a window spans {WINDOWS.span}",
        )

    @property
    def shortest(self) -> int:
        """Frames that every clip has at least."""
        return self.frames - self.frames // 8
