"""What every data set knows of its clips: lengths, keys, labels and splits."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from cltt.errors import FrameError, SettingsError
from cltt.shards import format

Array = np.ndarray[Any, Any]


class _ClipTable:
    """What both datasets know of clips: lengths, keys, labels and splits.

    Attributes:
        num_frames, num_clips: counts.
        clip_lengths: int64 [clips], frames of each clip.
        clip_offsets: int64 [clips + 1]; clip c holds the frame ids ``clip_offsets[c]`` to ``clip_offsets[c + 1] - 1``.
        label_names: names of the labels; split_names: names of the splits ([]: there are none).
        fingerprint: equal for equal frames in equal clips.
    """

    num_frames: int
    num_clips: int
    fingerprint: str
    label_names: list[str]
    split_names: list[str]
    _clips: Array  # [format.CLIP_ROWS, clips]

    @cached_property
    def clip_lengths(self) -> Array:
        return np.array(self._clips[format.CLIP_LENGTH])

    @cached_property
    def clip_offsets(self) -> Array:
        return np.concatenate([[0], np.cumsum(self.clip_lengths)])

    @cached_property
    def labels(self) -> Array:
        """Number of each clip's label in ``label_names``, int64 [clips]; -1: none."""
        return np.array(self._clips[format.CLIP_LABEL])

    def split_clips(self, name: str) -> Array:
        """Ids of the clips of one split, int64; SettingsError for a split that is not there."""
        if name not in self.split_names:
            known = ", ".join(self.split_names) or "none; build the shards with --splits"
            raise SettingsError(f"there is no split {name!r}; the splits are: {known}")
        return np.flatnonzero(self._clips[format.CLIP_SPLIT] == self.split_names.index(name)).astype(np.int64)

    def training_clips(self, split: str | None) -> tuple[str, Array]:
        """What a run trains on: ``split``, or ``train`` where there are splits, or all -> its name, int64 clip ids.

        Raises SettingsError for a split that is not there or has no clips.
        """
        name = split or ("train" if self.split_names else "all")
        if name == "all":
            return name, np.arange(self.num_clips)
        clips = self.split_clips(name)
        if not len(clips):
            there = ", ".join(f"{other} {len(self.split_clips(other)):,}" for other in self.split_names)
            raise SettingsError(f"the split {name!r} has no clips (clips a split: {there}); give another --split")
        return name, clips

    def clip_part(self, clip: int) -> int:
        """0 for a whole folder or its first part, 1 for what follows its first hole, and so on."""
        return int(self._clips[format.CLIP_PART, clip])

    def clip_of(self, frame_ids: Any) -> Array:
        """The clip of each frame, int64 of the same shape."""
        return np.searchsorted(self.clip_offsets, np.asarray(frame_ids), side="right").astype(np.int64) - 1

    def _check_ids(self, frame_ids: Any) -> Array:
        ids = np.asarray(frame_ids, np.int64).reshape(-1)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_frames):
            raise IndexError(f"frame ids {ids.min()}..{ids.max()}; they must be in 0..{self.num_frames - 1}")
        return ids

    def read_each(self, frame_ids: Any) -> list[bytes | FrameError]:
        raise NotImplementedError

    def read(self, frame_ids: Any) -> list[bytes]:
        """The JPEG bytes of each frame, in the order asked; repeats are allowed, and so are many threads.

        Raises FrameError for the first frame that is damaged or missing, IndexError for an id that does not exist.
        """
        frames = self.read_each(frame_ids)
        for frame in frames:
            if isinstance(frame, FrameError):
                raise frame
        return frames  # type: ignore[return-value]
