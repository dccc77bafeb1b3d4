"""Reads the windows that a picture shows: ids, names and decoded frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltt.config import Augment
from cltt.errors import DataError, FrameError
from cltt.region import NO_REGION, Box, Region, boxes_of
from cltt.sampling.epoch_windows import EpochWindows
from cltt.sampling.windows import WindowIndex
from cltt.shards.dataset import ShardDataset
from cltt.shards.folder import Dataset
from cltt.text import counted

Ids = NDArray[np.int64]
Pixels = NDArray[np.uint8]
NAMED = 10  # corrupt frames listed at most
GREY_LEVEL = 128  # pixels of a frame that cannot be decoded
IN_PLACE = "training takes the nearest good frame instead"
CUT = "training cuts the clip there"


@dataclass(frozen=True)
class WindowView:
    """Some windows and all that a picture shows of them: b windows of T frames, S x S pixels.

    Attributes:
        window_ids: int64 [b].
        clip_ids: int64 [b].
        frame_ids: int64 [b, T], dataset-wide.
        places: int64 [b, T], positions in the order that windows are cut from; equal to the ids unless frames are
            shuffled.
        times: int64 [b, T], each frame's number within its clip, counted from 0.
        frames: uint8 [b, T, S, S, 3], RGB; a frame that cannot be read or decoded is grey.
        clip_names: [b], the clip's folder, and its part if a corrupt frame cut the clip in two.
        frame_names: [b][T], source files relative to the root folder.
        corrupt: frame id -> one sentence, for each frame that cannot be shown.
        seconds: float64 [b, T], times in the source; NaN for frames without a time, None if no frame has one.
        in_training: what training does about corrupt frames.
        region: the region of the frames that the network sees.
        without_box: number of distinct frames without a box, if the region is given by boxes.
    """

    window_ids: Ids
    clip_ids: Ids
    frame_ids: Ids
    places: Ids
    times: Ids
    frames: Pixels
    clip_names: list[str]
    frame_names: list[list[str]]
    corrupt: dict[int, str]
    seconds: Pixels | None = None
    in_training: str = IN_PLACE
    region: Region = NO_REGION
    without_box: int = 0

    @property
    def distinct_frames(self) -> int:
        return len(np.unique(self.frame_ids))

    @property
    def overlapping_pairs(self) -> int:
        """Number of unordered pairs of windows of one clip that overlap in time."""
        first, last = self.places[:, 0], self.places[:, -1]
        overlap = (first[:, None] <= last) & (first <= last[:, None]) & (self.clip_ids[:, None] == self.clip_ids)
        return int(np.triu(overlap, 1).sum())

    def info(self) -> dict[str, Any]:
        """The view without its pixels, as JSON values."""
        count, size = self.frame_ids.shape
        channels_first = (count, size, 3, *self.frames.shape[2:4])
        return {
            "window_ids": self.window_ids.tolist(),
            "clip_ids": self.clip_ids.tolist(),
            "clips_shown": self.clip_names,
            "frame_ids": self.frame_ids.tolist(),
            "times": self.times.tolist(),
            **({} if self.seconds is None else {"seconds": _with_none(self.seconds)}),
            "frame_names": self.frame_names,
            "shape": list(channels_first),
            "distinct_frames": self.distinct_frames,
            "overlapping_pairs": self.overlapping_pairs,
            "region": self.region.kind,
            "region_effect": self.region.effect,
            "region_scale": self.region.scale,
            "without_box": self.without_box,
            "damaged": list(self.corrupt.values()),
            "damaged_in_training": self.in_training if self.corrupt else "",
        }


def view_windows(
    dataset: Dataset, epoch: EpochWindows, window_ids: Ids, *, image_size: int, region: Region = NO_REGION
) -> WindowView:
    """Read and decode the windows ``window_ids`` [b] of an epoch, each distinct frame once."""
    frame_ids = epoch.frames(window_ids)
    clips, _ = epoch.index.locate(window_ids)
    clips = np.asarray(clips, dtype=np.int64)
    distinct, position = np.unique(frame_ids, return_inverse=True)
    boxes = boxes_of(dataset, distinct, region)
    pictures, corrupt = decode_frames(dataset, distinct, image_size, region, boxes)
    names = [frame_name(dataset, int(frame)) for frame in distinct]
    return WindowView(
        window_ids=window_ids,
        clip_ids=clips,
        frame_ids=frame_ids,
        places=epoch.places(window_ids),
        times=frame_ids - dataset.clip_offsets[clips][:, None],
        frames=pictures[position.reshape(frame_ids.shape)],
        clip_names=[clip_name(dataset, int(clip)) for clip in clips],
        frame_names=[[names[place] for place in row] for row in position.reshape(frame_ids.shape)],
        corrupt=corrupt,
        seconds=dataset.frame_time(frame_ids),
        in_training=IN_PLACE if isinstance(dataset, ShardDataset) else CUT,
        region=region,
        without_box=boxes.count(None) if boxes is not None else 0,
    )


def _with_none(seconds: Pixels) -> list[list[float | None]]:
    """As lists, with None for NaN, which JSON does not have."""
    return [[None if np.isnan(second) else second for second in row] for row in seconds.tolist()]


def seconds_text(seconds: float) -> str:
    """A time as text, in hundredths of a second: ``t = 12.4 s``."""
    return f"t = {seconds:.2f}".rstrip("0").rstrip(".") + " s"


def decode_frames(
    dataset: Dataset, frame_ids: Ids, image_size: int, region: Region, boxes: list[Box | None] | None
) -> tuple[Pixels, dict[int, str]]:
    """Decode ``frame_ids`` [n] to uint8 [n, S, S, 3].

    Frames that fail stay grey and get a sentence by frame id.
    """
    from cltt.frames.decode_cpu import FrameDecoder
    from cltt.frames.geometry import Framing  # imported here, as OpenCV is slow to import

    decoder = FrameDecoder(Framing(image_size=image_size, region=region))
    pictures = np.full((len(frame_ids), image_size, image_size, 3), GREY_LEVEL, dtype=np.uint8)
    corrupt: dict[int, str] = {}
    for place, (frame, data) in enumerate(zip(frame_ids.tolist(), dataset.read_each(frame_ids), strict=True)):
        if isinstance(data, FrameError):
            corrupt[frame] = str(data)
            continue
        try:
            pictures[place] = decoder.frame(data, boxes[place] if boxes is not None else None)
        except (ValueError, MemoryError) as error:
            corrupt[frame] = str(FrameError(frame, dataset.frame_name(frame), f"cannot be decoded ({error})"))
    return pictures, corrupt


def augment_windows(
    dataset: Dataset, view: WindowView, augment: Augment, scope: str, *, seed: int, epoch: int
) -> Pixels:
    """The frames of ``view`` after training's augmentation in ``epoch``: uint8 [b, T, S, S, 3].

    It uses the loader's code. Imports torch, as the loader does. A frame that cannot be decoded is grey, as in
    ``view``.
    """
    import torch

    from cltt.frames.augment import random_numbers
    from cltt.frames.batch import BatchMaker
    from cltt.frames.decoders import CpuDecoder
    from cltt.frames.geometry import Framing
    from cltt.frames.store import FrameStore

    cpu = torch.device("cpu")
    framing = Framing(image_size=view.frames.shape[2], margin=augment.crop_area is not None, region=view.region)
    distinct, slots = np.unique(view.frame_ids, return_inverse=True)
    store = FrameStore(len(distinct), framing, cpu)
    good = [(slot, data) for slot, data in enumerate(dataset.read_each(distinct)) if isinstance(data, bytes)]
    boxes = boxes_of(dataset, distinct[[slot for slot, _ in good]], view.region)
    CpuDecoder(framing).decode([data for _, data in good], [slot for slot, _ in good], store, boxes)
    maker = BatchMaker(framing, cpu, torch.uint8, augment, channels_last=True, threads=1)
    draws = random_numbers(seed, epoch, view.window_ids, view.frame_ids, scope)
    batch = maker.make(store, slots.reshape(view.frame_ids.shape), draws)  # [b, T, 3, S, S]
    pixels: Pixels = batch.permute(0, 1, 3, 4, 2).numpy()
    pixels[np.isin(view.frame_ids, list(view.corrupt))] = GREY_LEVEL
    return pixels


def frame_name(dataset: Dataset, frame_id: int) -> str:
    """The source file of a frame; ``frame ID`` if the shard that holds the name is missing."""
    try:
        return dataset.frame_name(frame_id)
    except DataError:
        return f"frame {frame_id}"


def clip_name(dataset: Dataset, clip: int) -> str:
    """The clip's key, with ``(part N)`` for later parts of a clip that was cut."""
    part = dataset.clip_part(clip)
    return dataset.clip_key(clip) + (f" (part {part})" if part else "")


def random_ids(index: WindowIndex, batch_size: int, batch_idx: int, seed: int) -> Ids:
    """``batch_size`` distinct windows [B], uniformly at random.

    A function of ``(seed, batch_idx)``.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, batch_idx]))
    return generator.choice(len(index), batch_size, replace=False).astype(np.int64)


def windows_text(info: dict[str, Any]) -> str:
    """The entries of :meth:`WindowView.info` and the size of the data set as lines of text."""
    lines = [
        f"{counted(info['clips'], 'clip')}, {counted(info['frames'], 'frame')}, "
        f"{counted(info['windows'], 'window')} (split: {info['split']})",
        f"{info['showing']}: {' x '.join(map(str, info['shape']))} ([B, T, C, H, W]), "
        f"{counted(info['distinct_frames'], 'distinct frame')}, "
        f"pairs of windows that overlap in time: {info['overlapping_pairs']}",
    ]
    for window, clip, names in zip(info["window_ids"], info["clips_shown"], info["frame_names"], strict=True):
        lines.append(f"window {window}, clip {clip}: " + ", ".join(names))
    return "\n".join([*lines, *corrupt_lines(info)])


def corrupt_lines(info: dict[str, Any]) -> list[str]:
    """Lines about the first corrupt frames, and what training does about them."""
    lines = [f"damaged: {sentence}" for sentence in info["damaged"]]
    if not lines:
        return []
    rest = len(lines[NAMED:])
    more = [f"damaged: {counted(rest, 'frame')} more; --json names all"] if rest else []
    return [*lines[:NAMED], *more, f"damaged frames are drawn grey; {info['damaged_in_training']}"]
