"""Settings of the data: windows, their order, and the pixels of their frames."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cltt.config.augmenting import AugmentSettings
from cltt.config.fields import MANY, MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, check_fields, require, require_within, setting
from cltt.config.old_flags import OBJECT_FOCUS, SHORT_CLIPS, TWO_VIEWS
from cltt.errors import SettingsError
from cltt.region import BOXES_OF_SHARDS, EFFECTS, REGIONS, SCALES, Region
from cltt.text import shorten


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """The frames of a window: t, t+frame_step, ..., t+(window_size-1)*frame_step of one clip."""

    window_size: int = setting(5, "frames in a window (T)", within=(1, 10_000))
    frame_step: int | str = setting(
        10,
        "distance between neighbouring frames of a window, in frames (0: the same frame repeated); A-B: drawn for "
        "every window and epoch, from A to B",
        type=str,
        metavar="STEP",
        old=TWO_VIEWS,
    )
    window_stride: int = setting(1, "distance between the starts of neighbouring windows, in frames", within=(1, MANY))
    max_windows_per_clip: int = setting(
        0, "largest number of windows used per clip, evenly spread (0: all)", within=(0, MANY)
    )
    short_clip_windows: int = setting(
        0,
        "a clip with at most this many windows gives only one, from its middle (0: no such rule)",
        within=(0, MANY),
        old=SHORT_CLIPS,
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame_step", frame_step_value(self.frame_step))
        check_fields(self)

    @property
    def frame_steps(self) -> tuple[int, int]:
        """The shortest and the longest frame step."""
        shortest, _, longest = str(self.frame_step).partition("-")
        return int(shortest), int(longest or shortest)

    @property
    def span(self) -> int:
        """Frames from the first to the last of a window, both included; for the longest step if steps are drawn."""
        return (self.window_size - 1) * self.frame_steps[1] + 1


_FRAME_STEP = re.compile(r"(-?\d{1,20})(?:-(\d{1,20}))?")


def frame_step_value(given: object) -> int | str:
    """A frame step as it is saved, a number or ``A-B``, from one of these or a pair of numbers.

    Raises:
        SettingsError: for anything else, a number out of range, or a range A-B without 1 <= A < B.
    """
    found = _FRAME_STEP.fullmatch("-".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given))
    if found is None:
        shown = shorten(repr(given), 60)
        raise SettingsError(f"frame_step is {shown}; it must be a number of frames, or a range such as 1-15")
    steps = [int(number) for number in found.groups() if number]
    for step in steps:
        require_within("frame_step", step, 0, MANY)
    shortest, longest = steps[0], steps[-1]
    require(
        shortest == longest or 1 <= shortest < longest,
        f"frame_step is {given}; in a range A-B, A must be 1 or more and B greater than A",
    )
    return shortest if shortest == longest else f"{shortest}-{longest}"


SPLITS = ("train", "val", "test", "all")
AUGMENT_SCOPES = ("frame", "window")
NORMALISATIONS = ("imagenet", "none")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Where the frames come from, and which clips are used."""

    root_dir: str | None = setting(
        None, "folder of clip folders and videos; shards are built from it under shards/ on first use", free=True
    )
    shards: str | None = setting(None, "folder of built shards (instead of --root-dir)", free=True)
    fps: float | None = setting(
        None,
        "with --root-dir: frames per second taken from videos (default: every frame)",
        within=(1e-3, 1e3),
        free=True,
    )
    stream: int | None = setting(
        None,
        "with --root-dir: stream taken from each video, from 0 (default: the largest, thumbnails aside)",
        within=(0, 1000),
        free=True,
    )
    resize_short: int | None = setting(
        None,
        "with --root-dir: store frames with this short side, in pixels (default: as they are)",
        within=(8, 65_500),
        free=True,
    )
    rescan: bool = setting(False, "with --root-dir: look for changes of every file, not only of the folders", free=True)
    no_wait: bool = setting(
        False, "stop, instead of waiting, if another process is building the shards of --root-dir", free=True
    )
    stage_to: str | None = setting(
        None, "copy the shards to this node-local folder first, once per node, with checksums", free=True
    )
    split: str | None = setting(
        None, "clips to train on (default: train if the shards have splits, else all)", choices=SPLITS
    )
    clips: str | None = setting(
        None,
        "file that picks clips: one clip or folder of clips per line, # begins a comment (default: all)",
        free=True,
    )
    shuffle_frames: bool = setting(
        False,
        "put each clip's frames in a random order, fixed by the seed, before windows are cut: a control that shows "
        "what the order in time adds",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            (self.root_dir is None) != (self.shards is None),
            "give either --root-dir (a folder of clip folders) or --shards (a folder of built shards)",
        )

    def shuffle_seed(self, seed: int) -> int | None:
        """The seed of the frames' random order, for a run with ``seed``; None: they keep their order."""
        return seed if self.shuffle_frames else None


@dataclass(frozen=True, kw_only=True)
class OrderSettings:
    """Which windows make a batch: arguments of :class:`cltt.EpochPlan`."""

    batch_size: int = setting(64, "windows per step, over all ranks (B)", within=(1, 1_000_000))
    min_gap: int = setting(0, "smallest number of frames between two windows of one clip in a batch", within=(0, MANY))
    depth: int | None = setting(
        None,
        "steps per block: each frame is decoded once per block (default: 128, more where the data need it)",
        within=(1, 1_000_000),
    )
    clips_per_block: int = setting(
        0,
        "clips per group; a block takes its windows from at most two groups, so batches hold more moments of fewer "
        "clips (0: from all clips)",
        within=(0, MANY),
    )
    run: int | None = setting(
        None,
        "windows per run: windows of a clip that share frames, drawn together (default: 5*(window_size-1), at most 32; "
        "20 where the frame step is a range)",
        within=(1, MANY),
    )


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """What the pixels of a batch show: arguments of :class:`cltt.WindowLoader`."""

    augment_scope: str = setting("frame", "draw the augmentation per frame or per window", choices=AUGMENT_SCOPES)
    region: str = setting(
        "none",
        "part of the frame that the network sees: all, the center, or the shards' boxes",
        choices=REGIONS,
        old=OBJECT_FOCUS,
    )
    region_effect: str | None = setting(
        None, "blur what is outside the region, or crop a square around its middle (default: blur)", choices=EFFECTS
    )
    region_scale: float | None = setting(
        None, "side of that square, as a fraction of the frame's short side (default: 0.5)", within=SCALES
    )
    normalise: str = setting(
        "imagenet",
        "normalise pixels by ImageNet's mean and deviation, or (none) leave them from 0 to 1 (default with "
        "--checkpoint-path: as those weights were trained)",
        choices=NORMALISATIONS,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        region = self.looked_at
        for name in ("effect", "scale"):  # defaults are saved, too
            object.__setattr__(self, f"region_{name}", getattr(region, name))

    @property
    def looked_at(self) -> Region:
        """The region that the network sees."""
        return Region(self.region, self.region_effect, self.region_scale)


@dataclass(frozen=True, kw_only=True)
class DataSettings(ViewSettings, AugmentSettings, OrderSettings, SourceSettings):
    """The frames that a run trains on, and how they become batches."""

    image_size: int = setting(
        224, "side of the square frames that the network sees, in pixels", within=(MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    )
    num_workers: int = setting(4, "reading and decoding threads per rank", within=(1, 1024), free=True)
    cache_gb: float | None = setting(
        None,
        "cache of decoded frames, in GB (1e9 bytes) per rank (default: from the free memory)",
        within=(1e-6, 1e6),
        free=True,
    )
    keep_gb: float | None = setting(
        None,
        "main memory per node for decoded frames that are kept between epochs, in GB (default: what all frames need, "
        "but at most half of the free memory, and none in a run of one epoch; 0: keep none)",
        within=(0, 1e6),
        free=True,
    )
    keep_dir: str | None = setting(
        None, "keep these frames in a file in this node-local folder, so that a requeued job can use them", free=True
    )
    max_bad_frames: int = setting(
        100, "stop when more frames than this cannot be read or decoded", within=(0, MANY), free=True
    )
    io_patience: float = setting(
        600.0,
        "seconds to retry reads that fail with a transient error (EIO, ESTALE ...), and the last writes of a run",
        within=(0, 1e6),
        free=True,
    )

    def __post_init__(self) -> None:
        SourceSettings.__post_init__(self)
        AugmentSettings.__post_init__(self)
        ViewSettings.__post_init__(self)
        require(self.region != "boxes" or self.root_dir is None, BOXES_OF_SHARDS)
