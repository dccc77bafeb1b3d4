"""The registry of frames that cannot be used, and what takes their places in a batch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from cltt.errors import DataError, FrameError

log = logging.getLogger(__name__)

# Bad frames that the last message names.
MOST_NAMED = 20


class Dataset(Protocol):
    """The part of :class:`cltt.ShardDataset` used here."""

    fingerprint: str
    has_boxes: bool

    @property
    def clip_offsets(self) -> np.ndarray: ...
    def read_each(self, frame_ids: np.ndarray) -> list[bytes | FrameError]: ...
    def frame_name(self, frame_id: int) -> str: ...
    def frame_boxes(self, frame_ids: np.ndarray) -> np.ndarray | None: ...
    def clip_of(self, frame_ids: np.ndarray) -> np.ndarray: ...
    def clip_key(self, clip: int) -> str: ...


class BadFrames:
    """Frames that could not be read or decoded, each noted once; any thread may call it.

    Args:
        dataset: whose frames they are.
        limit: how many there may be.
    """

    def __init__(self, dataset: Dataset, limit: int) -> None:
        self._dataset, self._limit = dataset, limit
        self._errors: dict[int, FrameError] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._errors)

    def __contains__(self, frame: int) -> bool:
        return frame in self._errors

    def register(self, error: FrameError) -> None:
        """Note a bad frame and say so on the log. DataError, with a list, once there are more than the limit."""
        log.warning("bad frame, replaced by its nearest good neighbour: %s", error)
        with self._lock:
            self._errors[error.frame_id] = error
            errors = list(self._errors.values())
        if len(errors) > self._limit:
            others = f"; and {len(errors) - MOST_NAMED} more, all named above" if len(errors) > MOST_NAMED else ""
            raise DataError(
                f"{len(errors)} frames cannot be used, {self._limit} are allowed (--max-bad-frames): "
                + "; ".join(map(str, errors[:MOST_NAMED]))
                + others
            )

    def substitute(
        self, frame_ids: np.ndarray, slots: np.ndarray, fetch: Callable[[np.ndarray, np.ndarray], None], own_slots: int
    ) -> np.ndarray:
        """``slots`` [b, T] of ``frame_ids`` [b, T], with those of bad frames replaced.

        Slots from ``own_slots`` on hold kept frames, and these are good: another process may have decoded them.

        In the place of a bad frame comes the nearest good one of its window (the earlier of two), and where a window
        has none, the good frame of its clip nearest to its middle, for all of it: ``fetch`` decodes it into a slot of
        the window. DataError if the clip has none.
        """
        with self._lock:
            known = list(self._errors)
        if not known:
            return slots
        bad = np.isin(frame_ids, known) & (slots < own_slots)
        slots = slots.copy()
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            good = np.flatnonzero(~bad[row])
            if len(good):
                nearest = np.abs(good - np.arange(slots.shape[1])[:, None]).argmin(axis=1)
                slots[row] = slots[row, good[nearest]]
            else:
                slots[row] = self._decode_fallback(frame_ids[row], slots[row], fetch)
        return slots

    def _decode_fallback(
        self, frame_ids: np.ndarray, slots: np.ndarray, fetch: Callable[[np.ndarray, np.ndarray], None]
    ) -> int:
        """Decode the good frame nearest to the middle of a window that has none into the slot of that middle."""
        middle = frame_ids[len(frame_ids) // 2]
        slot = slots[len(slots) // 2 : len(slots) // 2 + 1]
        clip = int(self._dataset.clip_of(frame_ids[:1])[0])
        first, stop = self._dataset.clip_offsets[clip : clip + 2].tolist()
        for frame in sorted(range(first, stop), key=lambda frame: (abs(frame - middle), frame)):
            fetch(np.array([frame]), slot)
            if frame not in self:
                return int(slot[0])
        raise DataError(
            f"no frame of clip {self._dataset.clip_key(clip)!r} can be used; one of them: {self._errors[int(middle)]}"
        )
