"""The clips of a data set: lengths, keys, labels and splits; and how the files of a folder are cut into clips."""

from __future__ import annotations

import io
import operator
import re
from array import array
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.errors import FrameError, SettingsError
from cltt.files.regular import read_text
from cltt.files.tables import plain_path
from cltt.shards import layout
from cltt.text import shorten

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]
_COMMENT = re.compile(r"(^|\s)#.*")
MAX_LIST = 1 << 28  # bytes of a list of clips
FRAMES_AT_ONCE = 1 << 20  # frames whose boxes are read together


class _ClipTable:
    """Base of both data sets: the clips, their lengths, keys, labels and splits.

    Attributes:
        num_frames, num_clips: counts.
        clip_lengths: int64 [clips], frames per clip.
        clip_offsets: int64 [clips + 1]; clip c holds the frame ids ``clip_offsets[c]`` to ``clip_offsets[c + 1] - 1``.
        label_names, split_names: names of the labels and of the splits; [] if there are none.
        fingerprint: equal for equal frames in equal clips.
        has_boxes: whether frames have boxes.
        odd: one line for each thing in the source that looks odd.
    """

    num_frames: int
    num_clips: int
    fingerprint: str
    has_boxes: bool = False
    odd: list[str]
    label_names: list[str]
    split_names: list[str]
    _clips: Array  # [layout.CLIP_ROWS, clips]

    @cached_property
    def clip_lengths(self) -> Array:
        return np.array(self._clips[layout.CLIP_LENGTH])

    @cached_property
    def clip_offsets(self) -> Array:
        return np.concatenate([[0], np.cumsum(self.clip_lengths)])

    @cached_property
    def labels(self) -> Array:
        """Index of each clip's label in ``label_names``, int64 [clips]; -1: no label."""
        return np.array(self._clips[layout.CLIP_LABEL])

    def split_clips(self, name: str) -> Array:
        """Ids of the clips of one split, int64. SettingsError if there is no such split."""
        if name not in self.split_names:
            known = ", ".join(self.split_names) or "none; build the shards with --splits"
            raise SettingsError(f"there is no split {name!r}; the splits are: {known}")
        return np.flatnonzero(self._clips[layout.CLIP_SPLIT] == self.split_names.index(name)).astype(np.int64)

    def clip_key(self, clip: int) -> str:
        """The path of the clip's folder or video relative to the root folder."""
        raise NotImplementedError

    def listed_clips(self, path: str | None) -> Array:
        """Ids of the clips that the text file ``path`` names, int64; None: all clips.

        A line is a clip's key or a folder of clips. A ``#`` at the start of a line or after a blank begins a comment.
        Raises SettingsError for a file that cannot be read, or a line that matches no clip.
        """
        if path is None:
            return np.arange(self.num_clips)
        lines = read_clip_list(path)
        chosen = np.zeros(self.num_clips, bool)
        used: set[str] = set()
        for clip in range(self.num_clips):
            found = {".", *map(plain_path, heads(self.clip_key(clip)))} & lines.keys()
            chosen[clip] = bool(found)
            used |= found
        for line, number in lines.items():
            if line not in used:
                raise SettingsError(
                    f"line {number} of {path!r} is {shorten(line, 60)!r}, which is no clip or folder of clips here; "
                    f"give names such as {self.clip_key(0)!r}"
                )
        return np.flatnonzero(chosen).astype(np.int64)

    def training_clips(self, split: str | None, listed: str | None = None) -> tuple[str, Array]:
        """(name of the split, clip ids int64) that a run trains on.

        Args:
            split: None: "train" if the data set has splits, else "all".
            listed: a file that picks clips of the split (see :meth:`listed_clips`).

        Raises SettingsError if there is no such split, or if no clips are left.
        """
        name, clips = self._split_or_all(split)
        if listed is not None:
            clips = np.intersect1d(clips, self.listed_clips(listed))
            if not len(clips):
                raise SettingsError(
                    f"{listed!r} picks no clips of the split {name!r}; give another file or --split all"
                )
        return name, clips

    def _split_or_all(self, split: str | None) -> tuple[str, Array]:
        name = split or ("train" if self.split_names else "all")
        if name == "all":
            return name, np.arange(self.num_clips)
        clips = self.split_clips(name)
        if not len(clips):
            there = ", ".join(f"{other} {len(self.split_clips(other)):,}" for other in self.split_names)
            raise SettingsError(f"the split {name!r} has no clips (clips per split: {there}); give another --split")
        return name, clips

    def clip_part(self, clip: int) -> int:
        """Number of the clip among the parts of its folder, counted from 0; a folder without gaps is one part."""
        return int(self._clips[layout.CLIP_PART, clip])

    def clip_of(self, frame_ids: Any) -> Array:
        """The clip of each frame, int64 of the same shape."""
        return np.searchsorted(self.clip_offsets, np.asarray(frame_ids), side="right").astype(np.int64) - 1

    def frame_time(self, frame_ids: Any) -> Array | None:
        """Seconds since the clip's first frame, float64, shaped like ``frame_ids``; NaN for frames without a time.

        None if no frame of the data set has a time, as in folders of frames.
        """
        return None

    def frame_boxes(self, frame_ids: Any) -> Array | None:
        """Boxes x1, y1, x2, y2 as fractions of width and height, float32 [..., 4]; NaN for frames without a box.

        A box without extent is a point. None if the data set has no boxes.
        """
        return None

    def frames_without_box(self, clips: Array) -> int:
        """The number of frames of ``clips``, int64 ids, that have no box."""
        ends = np.cumsum(self.clip_lengths[clips])
        parts = np.split(clips, np.flatnonzero(np.diff(ends // FRAMES_AT_ONCE)) + 1)
        return sum(self._without_box(part) for part in parts)

    def _without_box(self, clips: Array) -> int:
        lengths = self.clip_lengths[clips]
        skipped = self.clip_offsets[clips] - (np.cumsum(lengths) - lengths)  # frames before each clip not in clips
        boxes = self.frame_boxes(np.arange(lengths.sum()) + np.repeat(skipped, lengths))
        return int(lengths.sum() if boxes is None else np.isnan(boxes[:, 0]).sum())

    def _check_ids(self, frame_ids: Any) -> Array:
        ids = np.asarray(frame_ids, np.int64).reshape(-1)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_frames):
            raise IndexError(f"frame ids {ids.min()}..{ids.max()}; they must be in 0..{self.num_frames - 1}")
        return ids

    def read_each(self, frame_ids: Any) -> list[bytes | FrameError]:
        """As :meth:`read`, with a FrameError in the place of each frame that is corrupt or missing."""
        raise NotImplementedError

    def __len__(self) -> int:
        """The number of frames."""
        return self.num_frames

    def __getitem__(self, frame_id: int) -> Image:
        """The frame as a PIL image, RGB; -1 is the last. For looking at single frames: a loader is faster.

        Raises as :meth:`read`; TypeError unless ``frame_id`` is an integer.
        """
        from PIL.Image import open as open_image

        number = operator.index(frame_id)
        (data,) = self.read([number + self.num_frames if number < 0 else number])
        return open_image(io.BytesIO(data)).convert("RGB")

    def read(self, frame_ids: Any) -> list[bytes]:
        """The JPEG bytes of each frame, in the order of ``frame_ids``. Ids may repeat; any thread may call it.

        Raises FrameError for the first frame that is corrupt or missing, IndexError for an id that does not exist.
        """
        frames = self.read_each(frame_ids)
        for frame in frames:
            if isinstance(frame, FrameError):
                raise frame
        return frames  # type: ignore[return-value]


def read_clip_list(path: str) -> dict[str, int]:
    """The entries of a list of clips, with their line numbers. SettingsError if it cannot be read or is empty."""
    try:
        text = read_text(path, MAX_LIST)
        rows = [_COMMENT.sub("", line.rstrip("\r")).strip() for line in text.replace("\r\n", "\n").split("\n")]
    except OSError as error:
        raise SettingsError(f"cannot read the list of clips {path!r}: {error.strerror}") from error
    entries = {plain_path(row): number for number, row in enumerate(rows, 1) if row}
    if not entries:
        raise SettingsError(f"the list of clips {path!r} is empty; give one clip or folder of clips per line")
    return entries


def heads(key: str) -> Iterator[str]:
    """``key`` and the folders above it, from the innermost to the outermost."""
    parts = key.split("/")
    return ("/".join(parts[:length]) for length in range(len(parts), 0, -1))


class ClipCutter:
    """Cuts files, given in order, into clips: one clip per folder, or several parts of a folder with gaps between.

    Attributes, with one entry per clip: ``first``, the number of its first frame; ``folder``. Only valid files count as
    frames.
    """

    def __init__(self) -> None:
        self.first, self.folder = array("q"), array("q")
        self.frames = 0
        self._last = -1  # folder of the file before; -1: it is no frame

    def add(self, folders: Array, valid: Array, gap_before: Array | None = None) -> None:
        """Add the next files: the folder of each, int64 [n]; which are frames, and which follow a gap, bool [n]."""
        if not len(folders):
            return
        known = np.where(valid, folders, -1)
        before = np.concatenate([[self._last], known[:-1]])
        starts = valid & (folders != before)
        if gap_before is not None:
            starts |= valid & gap_before
        self.first.extend((self.frames + np.flatnonzero(starts[valid])).tolist())
        self.folder.extend(folders[starts].tolist())
        self._last = int(known[-1])
        self.frames += int(valid.sum())

    def columns(self) -> tuple[Array, Array, Array]:
        """(first frame, length, part) of all clips, each int64 [clips]; parts count from 0 in each folder."""
        first, folder = np.frombuffer(self.first, np.int64), np.frombuffer(self.folder, np.int64)
        _, first_part, parts = np.unique(folder, return_index=True, return_counts=True)
        part = np.arange(len(folder)) - np.repeat(first_part, parts)
        return first, np.diff(first, append=self.frames), part

    def keys(self) -> tuple[Array, Array]:
        """(sorted folders that have a clip; for each clip the index of its folder among them)."""
        folders, numbers = np.unique(np.frombuffer(self.folder, np.int64), return_inverse=True)
        return folders, numbers.astype(np.int64)
