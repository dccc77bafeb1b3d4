"""The settings of a build, from which the flags of ``cltt build`` are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cltt.config import MAX_SEED, check_fields, require, setting
from cltt.source.image import MAX_PIXELS, MAX_SIDE
from cltt.source.videos import MAX_STREAM

# Stored with the shards only if not at their default, so that sets built before these settings still match.
LATER = ("include", "exclude", "stream", "boxes_unit")
_GLOBS: dict[str, Any] = {"action": "append", "metavar": "GLOB"}


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """All settings that decide the contents of a set; a build can be continued only with the same ones."""

    verify: str = setting("decode", "check every bit of each frame, or only its header", choices=["decode", "header"])
    resize_short: int | None = setting(None, "store frames with this short side, in pixels", within=(8, MAX_SIDE))
    quality: int = setting(90, "JPEG quality of frames of videos, or stored smaller by --resize-short", within=(1, 100))
    fps: float | None = setting(None, "frames per second taken of videos (default: every frame)", within=(1e-3, 1e3))
    max_gap: float | None = setting(
        None,
        "cut the clip of a video where no frame comes for longer than this, in seconds (default: the larger of 0.5 and "
        "2/fps; without --fps, or in a slower video, of 0.5 and twice the median distance of its frames)",
        within=(1e-3, 1e6),
    )
    shard_size: int = setting(1 << 30, "bytes of source files per shard; for videos an estimate", within=(1, 1 << 50))
    max_pixels: int = setting(MAX_PIXELS, "leave out pictures of more pixels than this", within=(1, 1 << 32))
    splits: str | None = setting(
        None,
        "shares of the clips, as in train=0.8,val=0.1,test=0.1, or csv:FILE (columns: clip key or folder, split)",
    )
    split_by: str = setting("clip", "what stays together in a split", choices=["clip", "parent"])
    split_seed: int = setting(0, "another seed, another split", within=(-MAX_SEED, MAX_SEED))
    label_from: str | None = setting(
        None,
        "label of each clip, by its key (the path of its folder): parent, regex:PATTERN or csv:FILE",
    )
    boxes: str | None = setting(
        None,
        "boxes of frames: csv:FILE (frame,x1,y1,x2,y2 or frame,x,y in pixels of the upright source)",
    )
    boxes_unit: str = setting(
        "pixel",
        "unit of the numbers of --boxes: pixels, or shares of a frame's width and height",
        choices=["pixel", "share"],
    )
    split_gaps: bool = setting(
        False, "start a new clip at a frame number that is not one usual step of its folder more than the one before"
    )

    include: tuple[str, ...] | None = setting(
        None,
        "take only files whose path below the root fits this pattern, as in 'cam0/*' (* also matches /; the flag may "
        "be given several times)",
        **_GLOBS,
    )
    exclude: tuple[str, ...] | None = setting(
        None, "leave out files whose path below the root fits this pattern, of those included too", **_GLOBS
    )
    stream: int | None = setting(
        None,
        "number of the video stream to take of each video, from 0 (default: the largest that is no thumbnail)",
        within=(0, MAX_STREAM),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("include", "exclude"):
            globs = getattr(self, name)
            fits = globs is None or (globs and all(isinstance(glob, str) and glob for glob in globs))
            require(bool(fits), f"{name} is {globs!r}; it must be patterns of paths, as in 'cam0/*'")

    def kept(self) -> dict[str, Any]:
        """The settings as index.json stores them."""
        defaults = BuildSettings()
        kept = {k: v for k, v in asdict(self).items() if k not in LATER or v != getattr(defaults, k)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


def with_defaults(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The settings stored with a set, completed by the defaults of those that it lacks."""
    return {**{name: getattr(BuildSettings, name) for name in LATER}, **kept}
