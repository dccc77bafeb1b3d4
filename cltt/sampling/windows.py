"""The windows of all clips, computed from their number without a list of windows.

Legend: L frames in a clip; T = window_size; span = (T-1)*frame_step + 1 frames, of the longest step; a clip offers
n = max(0, (L-span)//window_stride + 1) windows that start at 0, window_stride, 2*window_stride, ... All or m < n of
them are used.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from cltt.config import WindowSettings, frame_step_value, require
from cltt.errors import SettingsError
from cltt.sampling.permutation import FRAMES, MAX_SEED, PermutationFamily, seed_sequence

Ints = np.ndarray | Sequence[int] | int


class WindowIndex:
    """All windows of the chosen clips, numbered from 0 clip by clip, within a clip by start.

    Memory is a few integers per clip, none per window. ``len()`` is the number of windows.

    Args:
        clip_lengths: frames of every clip of the data set [all clips], any integer type; may be a memory map.
        window_size: frames per window (T).
        frame_step: distance between neighbouring frames of a window, in frames; 0: the same frame T times. A pair
            (A, B), or the text ``A-B``: :class:`~cltt.EpochPlan` draws the step of each window anew in each epoch.
        window_stride: distance between the starts of neighbouring windows, in frames.
        max_windows_per_clip: m > 0: a clip that offers n > m windows uses those at ``k*(n-1)//(m-1)``, k = 0..m-1,
            evenly spread from the first to the last; for m = 1 the one at ``n//2``. 0: all windows are used.
        clips: ids of the clips to use (a split), each once; windows are numbered in this order. None: all clips.
        short_clip_windows: a clip that offers 1 to this many windows uses one, at ``n//2``. 0: no such rule.
        shuffle_seed: 0 to 2**64-1: the frames of each clip are put in a random order, fixed by this seed and the clip's
            id, before windows are cut, so that neighbours in a window are not neighbours in time. None: no shuffle.

    Attributes:
        settings: the :class:`~cltt.config.WindowSettings`; its fields are also attributes of the index.
        frame_steps: the shortest and the longest step.
        span: frames from the first to the last of a window with the longest step, both included.
        clip_lengths, clip_offsets: int64 [all clips], [all clips + 1]; clip c holds frames offsets[c]..offsets[c+1]-1.
        clips: int64 [used clips]; num_clips is their number.
        windows_per_clip: int64 [used clips].
        first_window: int64 [clips with windows + 1]; of the clips with windows, number k has windows first_window[k] to
            first_window[k+1]-1.

    Raises:
        SettingsError: a value is out of its range, or no clip has a window.
    """

    def __init__(
        self,
        clip_lengths: Ints,
        window_size: int = 5,
        frame_step: int | str | tuple[int, int] = 10,
        window_stride: int = 1,
        max_windows_per_clip: int = 0,
        *,
        clips: Ints | None = None,
        short_clip_windows: int = 0,
        shuffle_seed: int | None = None,
    ) -> None:
        self.settings = settings = WindowSettings(
            window_size=operator.index(window_size),
            frame_step=frame_step_value(frame_step),
            window_stride=operator.index(window_stride),
            max_windows_per_clip=operator.index(max_windows_per_clip),
            short_clip_windows=operator.index(short_clip_windows),
        )
        self.window_size, self.window_stride = settings.window_size, settings.window_stride
        self.frame_step, self.frame_steps, self.span = settings.frame_step, settings.frame_steps, settings.span
        self.max_windows_per_clip, self.short_clip_windows = settings.max_windows_per_clip, settings.short_clip_windows
        self.clip_lengths = _checked_lengths(clip_lengths)
        self.clip_offsets = _offsets(self.clip_lengths)
        self.shuffle_seed = None if shuffle_seed is None else operator.index(shuffle_seed)
        self._shuffle = _frame_shuffle(self.clip_lengths, self.shuffle_seed)
        self.clips = _checked_clips(clips, len(self.clip_lengths))
        self.num_clips = len(self.clips)
        lengths = self.clip_lengths[self.clips]
        offered = np.where(lengths >= self.span, (lengths - self.span) // self.window_stride + 1, 0)
        self.windows_per_clip = self._used(offered)
        if not offered.any():
            raise SettingsError(self._nothing_fits(lengths))
        # A look-up searches only the clips that have windows.
        holding = np.flatnonzero(offered)
        self._holding_clips = self.clips[holding]
        self._offered = offered[holding]
        self._holder_windows = self.windows_per_clip[holding]
        self.first_window = _offsets(self._holder_windows)
        self._frame_base = self.clip_offsets[self._holding_clips]
        self._buckets, self._bucket_shift = _bucket_table(self.first_window)

    def __len__(self) -> int:
        return int(self.first_window[-1])

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)}" for name in WINDOW_FIELDS)
        return f"WindowIndex({len(self)} windows of {self.num_clips} clips, {fields})"

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of all clip lengths and the ids of the clips used, in hexadecimal."""
        digest = hashlib.sha256()
        for array in (self.clip_lengths, self.clips):
            digest.update(f"{len(array)};".encode())
            digest.update(np.ascontiguousarray(array, dtype="<i8").data)
        return digest.hexdigest()

    def locate(self, i: Ints) -> tuple[Any, Any]:
        """Clip id and start (first frame, counted within the clip) of window ``i``: int64, both of the shape of ``i``.

        Raises:
            IndexError: an ``i`` outside 0..len-1.
        """
        holder, start = self._find(i)
        return self._holding_clips[holder], start

    def frames(self, i: Ints, steps: np.ndarray | None = None) -> np.ndarray:
        """Dataset-wide ids of the frames of window ``i``: int64 [..., T], ``...`` being the shape of ``i``.

        ``steps``: the step of each window, of the shape of ``i``; needed where ``frame_step`` is a range.

        Raises:
            IndexError: an ``i`` outside 0..len-1.
            SettingsError: ``frame_step`` is a range and no ``steps`` are given.
        """
        holder, places = self._places_in_clip(i, steps)
        if self._shuffle is not None:
            places = self._shuffle(places, self._holding_clips[holder][..., None])
        return np.asarray(self._frame_base[holder])[..., None] + places

    def places(self, i: Ints, steps: np.ndarray | None = None) -> np.ndarray:
        """Positions of the frames of window ``i`` in the order that windows are cut from: int64 [..., T], dataset-wide.

        Two windows of a clip overlap if their places do. Without ``shuffle_seed`` places are frame ids. ``steps`` and
        errors as in :meth:`frames`.
        """
        holder, places = self._places_in_clip(i, steps)
        return np.asarray(self._frame_base[holder])[..., None] + places

    def index_distance(self, frames: int) -> np.ndarray:
        """Per clip: the index offset from which on two windows start ``frames`` or more frames apart.

        int64 [clips with windows], at least 1. If m of n windows are used, window k is window k*(n-1)//(m-1) of the n,
        so an offset of d covers at least d*(n-1)//(m-1) of them, and exactly that from k = 0.
        """
        candidates = -(-frames // self.window_stride)
        distance = np.full(len(self._offered), max(1, candidates), dtype=np.int64)
        thinned = self._holder_windows < self._offered
        distance[thinned] = -(-candidates * (self._holder_windows[thinned] - 1) // (self._offered[thinned] - 1))
        return np.maximum(distance, 1)

    def steps_needed(self, frames: int) -> int:
        """Batches that suffice for every clip so that no batch holds two of its windows less than ``frames`` apart."""
        return int(np.minimum(self.index_distance(frames), self._holder_windows).max())

    @cached_property
    def sharing_distance(self) -> np.ndarray:
        """Per clip: the index offset to the window that shares the most frames; 0 if no windows share frames.

        int64 [clips with windows]. Windows share frames if their starts differ by a multiple of both frame_step and
        window_stride. In a clip that uses m < n windows the offset is 1 if neighbouring windows overlap in time, and
        where ``frame_step`` is a range also in all others.
        """
        low, high = self.frame_steps
        between = math.lcm(low, self.window_stride) if low == high else self.window_stride
        shares = 0 < between <= (self.window_size - 1) * high
        offset = between // self.window_stride if shares else 0
        thinned = self._holder_windows < self._offered
        neighbours = (self.index_distance(self.span) > 1).astype(np.int64) if high else 0
        distance = np.where(thinned, neighbours, offset)
        return np.where(distance < self._holder_windows, distance, 0)

    def _used(self, offered: np.ndarray) -> np.ndarray:
        """Number of windows used of the ``offered`` ones, per clip."""
        used = np.minimum(offered, self.max_windows_per_clip) if self.max_windows_per_clip else offered
        return np.where(offered <= self.short_clip_windows, np.minimum(used, 1), used)

    def _find(self, i: Ints) -> tuple[Any, Any]:
        """Number of the clip among those with windows, and start in frames within the clip, of window ``i``."""
        ids = self._checked_ids(i)
        holder = self._holder(ids)
        window = ids - self.first_window[holder]
        if self.max_windows_per_clip or self.short_clip_windows:
            window = _spread(window, self._offered[holder], self._holder_windows[holder])
        return holder, window * self.window_stride

    def _places_in_clip(self, i: Ints, steps: np.ndarray | None) -> tuple[Any, np.ndarray]:
        """Number of the clip among those with windows, and places in the clip [..., T], of the frames of ``i``."""
        low, high = self.frame_steps
        require(
            steps is not None or low == high,
            f"frame_step is {self.frame_step}: each epoch draws the steps of the windows anew; EpochPlan.frames and "
            "EpochPlan.places give those of an epoch",
        )
        holder, start = self._find(i)
        apart = np.asarray(low if steps is None else steps)[..., None]
        return holder, np.asarray(start)[..., None] + np.arange(self.window_size) * apart

    def _checked_ids(self, i: Ints) -> Any:
        ids = np.asarray(i)
        if ids.size == 0:
            return ids.astype(np.int64)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"window ids must be integers, not {ids.dtype}")
        low, high = ids.min(), ids.max()
        if low < 0 or high >= len(self):
            raise IndexError(f"window {low if low < 0 else high} does not exist; ids run from 0 to {len(self) - 1}")
        return ids.astype(np.int64, copy=False)

    def _holder(self, ids: Any) -> Any:
        """Largest j with first_window[j] <= id: bisection among the few clips of the id's bucket."""
        bucket = ids >> self._bucket_shift
        low, high = self._buckets[bucket], self._buckets[bucket + 1]
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high + 1) >> 1
            right = self.first_window[middle] <= ids
            low, high = np.where(right, middle, low), np.where(right, high, middle - 1)
        return low

    def _nothing_fits(self, lengths: np.ndarray) -> str:
        longest = int(lengths.max(initial=0))
        most = self.frame_steps[1]
        asked = f"a window of {self.window_size} frames {most} apart spans {self.span} frames, but "
        if longest == 0:
            return asked + f"none of the {len(lengths)} clips has any frame; choose clips that have frames"
        size = (longest - 1) // most + 1
        asked += f"the longest of the {len(lengths)} clips has {longest}; with frame_step {most} "
        asked += f"the largest window_size that fits is {size}"
        step = (longest - 1) // (self.window_size - 1)
        if step == 0:
            return f"{asked}; no frame_step fits window_size {self.window_size}"
        return f"{asked}; with window_size {self.window_size} the largest frame_step that fits is {step}"


WINDOW_FIELDS = ("window_size", "frame_step", "window_stride", "max_windows_per_clip", "short_clip_windows")


def _frame_shuffle(clip_lengths: np.ndarray, seed: int | None) -> PermutationFamily | None:
    if seed is None:
        return None
    require(0 <= seed < MAX_SEED, f"shuffle_seed is {seed}; it must be from 0 to {MAX_SEED - 1}, or None")
    return PermutationFamily(clip_lengths, seed_sequence(seed, 0, FRAMES))


def _checked_lengths(clip_lengths: Ints) -> np.ndarray:
    lengths = _integers("clip_lengths", clip_lengths, "one number of frames per clip", "integers")
    lengths = lengths.astype(np.int64, copy=False)
    shortest = int(lengths.min(initial=0))
    require(shortest == 0, f"clip_lengths holds {shortest}; a clip has 0 frames or more")
    return lengths


def _checked_clips(clips: Ints | None, num_clips: int) -> np.ndarray:
    if clips is None:
        return np.arange(num_clips, dtype=np.int64)
    ids = _integers("clips", clips, "a list of clip ids", "integer clip ids (for a mask use numpy.flatnonzero)")
    outside = ids[(ids < 0) | (ids >= num_clips)].tolist()
    require(not outside, f"clips names clip {outside[:1]}, but clip ids run from 0 to {num_clips - 1}")
    require(len(np.unique(ids)) == len(ids), "clips names a clip more than once; give each clip id once")
    return ids.astype(np.int64)


def _integers(name: str, values: Ints, shape: str, kind: str) -> np.ndarray:
    """``values`` as an array [n]; SettingsError, which says what ``shape`` and ``kind`` are wanted, for others."""
    array = np.asarray(values)
    require(array.ndim == 1, f"{name} has shape {array.shape}; it must be {shape}")
    require(array.size == 0 or array.dtype.kind in "iu", f"{name} is of type {array.dtype}; it must be {kind}")
    return array


def _offsets(counts: np.ndarray) -> np.ndarray:
    """Cumulative sum that begins with 0: int64 [len + 1]."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _spread(k: Any, offered: Any, used: Any) -> Any:
    """Window ``k`` of the ``used`` ones of a clip, as a number among the ``offered`` ones."""
    between = np.maximum(used - 1, 1)
    return np.where(used == 1, offered // 2, np.where(offered > used, k * (offered - 1) // between, k))


def _bucket_table(first_window: np.ndarray) -> tuple[np.ndarray, int]:
    """(table, shift): table[id >> shift] is the number of the clip that holds the first id of the bucket.

    There are about two buckets per clip. A look-up is one read and one or two steps of bisection, instead of the twenty
    cache misses of a binary search over a million clips.
    """
    num_windows, num_clips = int(first_window[-1]), len(first_window) - 1
    shift = max(0, (num_windows // num_clips).bit_length() - 2)
    begins_by = -(-first_window[:-1] >> shift)  # the first bucket bound at or after each clip's first window
    return np.cumsum(np.bincount(begins_by, minlength=(num_windows >> shift) + 2)) - 1, shift
