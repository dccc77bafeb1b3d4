"""Windows of clips in closed form: which frames window i holds, with no list of windows anywhere.

Legend: L frames of a clip; T window_size; a window's span is (T-1)*frame_step+1 frames; a clip of L frames offers
n = max(0, (L-span)//window_stride + 1) windows, starting at 0, window_stride, 2*window_stride, ..., of which all or
m < n are used.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from cltt.config import WindowSettings, require
from cltt.errors import SettingsError
from cltt.sampling.permutation import FRAMES, MAX_SEED, KeyedPermutations, seed_sequence

Ints = np.ndarray | Sequence[int] | int


class WindowIndex:
    """All windows of the chosen clips, numbered 0..len-1: clip by clip, in each clip by start.

    Memory is a few integers a clip; nothing is kept for a window.

    Args:
        clip_lengths: frames of every clip of the data set [all clips], any integer type; a memory map will do.
        window_size: frames in a window (T).
        frame_step: distance between neighbouring frames of a window, in frames; 0: the same frame T times.
        window_stride: distance between the starts of neighbouring windows, in frames.
        max_windows_per_clip: 0 for all; else m, which takes of a clip's n > m windows those at ``k*(n-1)//(m-1)``,
            k = 0..m-1 (evenly spread, first and last included), and at ``n//2`` for m = 1.
        clips: ids of the clips to use (a split), each once; windows are numbered in this order. None: all clips.
        short_clip_windows: a clip that offers 1 to this many windows gives one, that at ``n//2``. 0: no such rule.
        shuffle_seed: 0 to 2**64-1: every clip's frames are put in a random order, fixed by this seed and the clip's id,
            before windows are cut from them, so that neighbours in a window are no neighbours in time. None: they stay
            as they are.

    Attributes:
        settings: the :class:`~cltt.config.WindowSettings`; its fields are attributes of the index, too.
        span: frames from the first to the last of a window, both included.
        clip_lengths, clip_offsets: int64 [all clips], [all clips + 1]; clip c holds frames offsets[c]..offsets[c+1]-1.
        clips: int64 [used clips]; num_clips is their number.
        windows_per_clip: int64 [used clips].
        first_window: int64 [clips that have windows + 1]; the k-th of them holds windows first_window[k] to
            first_window[k+1]-1.

    Raises:
        SettingsError: a value that cannot work, or settings that leave no window in any clip.
    """

    def __init__(
        self,
        clip_lengths: Ints,
        window_size: int = 5,
        frame_step: int = 10,
        window_stride: int = 1,
        max_windows_per_clip: int = 0,
        *,
        clips: Ints | None = None,
        short_clip_windows: int = 0,
        shuffle_seed: int | None = None,
    ) -> None:
        given = (window_size, frame_step, window_stride, max_windows_per_clip, short_clip_windows)
        numbers = [operator.index(number) for number in given]
        self.settings = WindowSettings(**dict(zip(WINDOW_FIELDS, numbers, strict=True)))
        self.window_size, self.frame_step, self.window_stride, self.max_windows_per_clip = numbers[:4]
        self.short_clip_windows = numbers[4]
        self.span = self.settings.span
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
        # Windows are looked up among the clips that have any.
        holding = np.flatnonzero(offered)
        self._holding_clips = self.clips[holding]
        self._offered = offered[holding]
        self._holder_windows = self.windows_per_clip[holding]
        self.first_window = _offsets(self._holder_windows)
        self._frame_base = self.clip_offsets[self._holding_clips]
        self._guide, self._guide_shift = _guide(self.first_window)

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

    def frames(self, i: Ints) -> np.ndarray:
        """Dataset-wide ids of the frames of window ``i``: int64 [..., T], ``...`` being the shape of ``i``.

        Raises:
            IndexError: an ``i`` outside 0..len-1.
        """
        holder, start = self._find(i)
        places = np.asarray(start)[..., None] + np.arange(self.window_size) * self.frame_step
        if self._shuffle is not None:
            places = self._shuffle(places, self._holding_clips[holder][..., None])
        return np.asarray(self._frame_base[holder])[..., None] + places

    def places(self, i: Ints) -> np.ndarray:
        """Where the frames of window ``i`` stand after the shuffle: int64 [..., T], counted over the whole data set.

        Windows of a clip overlap where their places do. Without ``shuffle_seed`` these are the ids of the frames.

        Raises:
            IndexError: an ``i`` outside 0..len-1.
        """
        holder, start = self._find(i)
        first = self._frame_base[holder] + start
        return np.asarray(first)[..., None] + np.arange(self.window_size) * self.frame_step

    def index_distance(self, frames: int) -> np.ndarray:
        """How far apart two windows of a clip must be numbered for their starts to lie ``frames`` or more apart.

        int64 [clips that have windows], at least 1. Window k of m used ones is candidate k*(n-1)//(m-1), so d numbers
        cover at least d*(n-1)//(m-1) candidates, and exactly that from k = 0.
        """
        candidates = -(-frames // self.window_stride)
        distance = np.full(len(self._offered), max(1, candidates), dtype=np.int64)
        thinned = self._holder_windows < self._offered
        distance[thinned] = -(-candidates * (self._holder_windows[thinned] - 1) // (self._offered[thinned] - 1))
        return np.maximum(distance, 1)

    def steps_needed(self, frames: int) -> int:
        """Batches over which any clip can be spread with no two starts less than ``frames`` apart in a batch."""
        return int(np.minimum(self.index_distance(frames), self._holder_windows).max())

    @cached_property
    def sharing_distance(self) -> np.ndarray:
        """How much further on the window is numbered that shares most frames with a window, of each clip with windows.

        int64 [clips that have windows]. Starts must differ by a multiple of both frame_step and window_stride; in a
        clip whose windows are thinned out neighbours are taken, evenly spread or not. 0: no windows of the clip share
        frames.
        """
        between = math.lcm(self.frame_step, self.window_stride)
        shares = 0 < between <= (self.window_size - 1) * self.frame_step
        whole = between // self.window_stride if shares else 0
        thinned = self._holder_windows < self._offered
        neighbours = (self.index_distance(self.span) > 1).astype(np.int64) if self.frame_step else 0
        distance = np.where(thinned, neighbours, whole)
        return np.where(distance < self._holder_windows, distance, 0)

    def _used(self, offered: np.ndarray) -> np.ndarray:
        """How many of the windows that clips offer are used."""
        used = np.minimum(offered, self.max_windows_per_clip) if self.max_windows_per_clip else offered
        return np.where(offered <= self.short_clip_windows, np.minimum(used, 1), used)

    def _find(self, i: Ints) -> tuple[Any, Any]:
        """Position among the clips with windows, and start in frames within the clip, of window ``i``."""
        ids = self._checked_ids(i)
        holder = self._holder(ids)
        window = ids - self.first_window[holder]
        if self.max_windows_per_clip or self.short_clip_windows:
            window = _spread(window, self._offered[holder], self._holder_windows[holder])
        return holder, window * self.window_stride

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
        """Largest j with _first_window[j] <= id: a bisection inside the few clips that the id's bucket touches."""
        bucket = ids >> self._guide_shift
        low, high = self._guide[bucket], self._guide[bucket + 1]
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high + 1) >> 1
            right = self.first_window[middle] <= ids
            low, high = np.where(right, middle, low), np.where(right, high, middle - 1)
        return low

    def _nothing_fits(self, lengths: np.ndarray) -> str:
        longest = int(lengths.max(initial=0))
        asked = f"a window of {self.window_size} frames {self.frame_step} apart spans {self.span} frames, but "
        if longest == 0:
            return asked + f"none of the {len(lengths)} clips has any frame; choose clips that have frames"
        size = (longest - 1) // self.frame_step + 1
        asked += f"the longest of the {len(lengths)} clips has {longest}; with frame_step {self.frame_step} "
        asked += f"the largest window_size that fits is {size}"
        step = (longest - 1) // (self.window_size - 1)
        if step == 0:
            return f"{asked}; no frame_step fits window_size {self.window_size}"
        return f"{asked}; with window_size {self.window_size} the largest frame_step that fits is {step}"


WINDOW_FIELDS = ("window_size", "frame_step", "window_stride", "max_windows_per_clip", "short_clip_windows")


def _frame_shuffle(clip_lengths: np.ndarray, seed: int | None) -> KeyedPermutations | None:
    if seed is None:
        return None
    require(0 <= seed < MAX_SEED, f"shuffle_seed is {seed}; it must be from 0 to {MAX_SEED - 1}, or None")
    return KeyedPermutations(clip_lengths, seed_sequence(seed, 0, FRAMES))


def _checked_lengths(clip_lengths: Ints) -> np.ndarray:
    lengths = np.asarray(clip_lengths)
    require(lengths.ndim == 1, f"clip_lengths has shape {lengths.shape}; it must be one number of frames a clip")
    require(
        lengths.size == 0 or lengths.dtype.kind in "iu", f"clip_lengths is of type {lengths.dtype}; it must be integers"
    )
    lengths = lengths.astype(np.int64, copy=False)
    shortest = int(lengths.min(initial=0))
    require(shortest == 0, f"clip_lengths holds {shortest}; a clip has 0 frames or more")
    return lengths


def _checked_clips(clips: Ints | None, num_clips: int) -> np.ndarray:
    if clips is None:
        return np.arange(num_clips, dtype=np.int64)
    ids = np.asarray(clips)
    require(ids.ndim == 1, f"clips has shape {ids.shape}; it must be a list of clip ids")
    require(
        ids.size == 0 or ids.dtype.kind in "iu",
        f"clips is of type {ids.dtype}; it must be integer clip ids (for a mask use numpy.flatnonzero)",
    )
    outside = ids[(ids < 0) | (ids >= num_clips)].tolist()
    require(not outside, f"clips names clip {outside[:1]}, but clip ids run from 0 to {num_clips - 1}")
    require(len(np.unique(ids)) == len(ids), "clips names a clip more than once; give each clip id once")
    return ids.astype(np.int64)


def _offsets(counts: np.ndarray) -> np.ndarray:
    """Running sum with a 0 in front: int64 [len + 1]."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _spread(k: Any, offered: Any, used: Any) -> Any:
    """Candidate taken as window ``k`` of a clip that offers ``offered`` windows of which ``used`` are used."""
    between = np.maximum(used - 1, 1)
    return np.where(used == 1, offered // 2, np.where(offered > used, k * (offered - 1) // between, k))


def _guide(first_window: np.ndarray) -> tuple[np.ndarray, int]:
    """Table from id >> shift to the position of the clip that holds the first such id, and the shift.

    About two buckets a clip, so that a look-up is one read here and a step or two of bisection instead of the twenty
    cache misses of a binary search over a million clips.
    """
    num_windows, num_clips = int(first_window[-1]), len(first_window) - 1
    shift = max(0, (num_windows // num_clips).bit_length() - 2)
    begins_by = -(-first_window[:-1] >> shift)  # the first bucket bound at or after each clip's first window
    return np.cumsum(np.bincount(begins_by, minlength=(num_windows >> shift) + 2)) - 1, shift
