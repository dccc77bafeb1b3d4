"""The settings of a build; the flags of ``cltt build`` are made from them."""

from __future__ import annotations

from dataclasses import dataclass

from cltt.config import MAX_SEED, check_fields, setting
from cltt.source.image import MAX_PIXELS, MAX_SIDE


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What decides the bytes of a set of shards, and so what a build that goes on must share with its start."""

    verify: str = setting("decode", "check every bit of each frame, or only its header", choices=["decode", "header"])
    resize_short: int | None = setting(None, "store frames with this short side, in pixels", within=(8, MAX_SIDE))
    quality: int = setting(90, "JPEG quality of frames of videos, or stored smaller by --resize-short", within=(1, 100))
    fps: float | None = setting(None, "frames a second taken of videos (default: every frame)", within=(1e-3, 1e3))
    max_gap: float | None = setting(
        None,
        "cut the clip of a video where no frame comes for longer than this, in seconds (default: the larger of 0.5 and "
        "2/fps, or without --fps of 0.5 and twice the usual distance of its frames)",
        within=(1e-3, 1e6),
    )
    shard_size: int = setting(
        1 << 30, "start a new shard beyond so many bytes of source files, of videos roughly", within=(1, 1 << 50)
    )
    max_pixels: int = setting(MAX_PIXELS, "leave out pictures of more pixels than this", within=(1, 1 << 32))
    splits: str | None = setting(
        None,
        "shares of the clips, as in train=0.8,val=0.1,test=0.1, or csv:FILE (columns: clip key or folder, split)",
    )
    split_by: str = setting("clip", "what stays together in a split", choices=["clip", "parent"])
    split_seed: int = setting(0, "another seed, another split", within=(-MAX_SEED, MAX_SEED))
    label_from: str | None = setting(
        None,
        "a clip's label: parent, regex:PATTERN or csv:FILE, asked about the clip's key, its folder's path",
    )
    boxes: str | None = setting(
        None,
        "where to look in each frame: csv:FILE (frame,x1,y1,x2,y2 or frame,x,y in pixels of the upright source)",
    )
    split_gaps: bool = setting(False, "start a new clip where the frame numbers jump (one that comes twice is no jump)")

    def __post_init__(self) -> None:
        check_fields(self)
