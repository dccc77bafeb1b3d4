"""Reading and decoding into slots, the book of bad frames, and how much memory the slots may take."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Protocol

import numpy as np

from cltt.errors import DataError, FrameError
from cltt.files.patience import Patience
from cltt.frames.decoders import Decoder
from cltt.frames.store import FrameStore

log = logging.getLogger(__name__)

# Of the memory that is free when a loader starts: on a GPU the model still has to fit, on a CPU other programs.
GPU_SHARE, CPU_SHARE = 0.4, 0.5
# Bad frames that the last message names.
MOST_NAMED = 20


class Dataset(Protocol):
    """The part of :class:`cltt.ShardDataset` used here."""

    fingerprint: str
    patience: Patience

    @property
    def clip_offsets(self) -> np.ndarray: ...
    def read_each(self, frame_ids: np.ndarray) -> list[bytes | FrameError]: ...
    def frame_name(self, frame_id: int) -> str: ...
    def clip_of(self, frame_ids: np.ndarray) -> np.ndarray: ...
    def clip_key(self, clip: int) -> str: ...


class Frames:
    """Brings frames into the slots of ``store``; any number of threads may call :meth:`fill`.

    Attributes:
        read, decoded, bytes_read: totals.
        bad: {frame id: why}; a frame found bad once is not tried again.
    """

    def __init__(self, dataset: Dataset, decoder: Decoder, store: FrameStore, max_bad: int) -> None:
        self._dataset, self._decoder, self.store, self._max_bad = dataset, decoder, store, max_bad
        self.read = self.decoded = self.bytes_read = 0
        self.bad: dict[int, FrameError] = {}
        self._lock = threading.Lock()

    def fill(self, frames: np.ndarray, slots: np.ndarray) -> None:
        """Read and decode ``frames`` int64 [n] into ``slots`` int64 [n]; a bad frame goes into the book instead.

        Raises DataError when the book holds more than ``max_bad``.
        """
        wanted = [k for k, frame in enumerate(frames.tolist()) if frame not in self.bad]
        if not wanted:
            return
        frames, slots = frames[wanted], slots[wanted]
        jpegs: list[bytes] = []
        places: list[int] = []
        errors: list[FrameError] = []
        for place, found in enumerate(self._dataset.read_each(frames)):
            if isinstance(found, FrameError):
                errors.append(found)
            else:
                jpegs.append(found)
                places.append(place)
        failures = self._decoder.decode(jpegs, slots[places].tolist(), self.store) if jpegs else {}
        errors += [self._error(int(frames[places[k]]), reason) for k, reason in failures.items()]
        with self._lock:
            self.read += len(jpegs)
            self.bytes_read += sum(map(len, jpegs))
            self.decoded += len(jpegs) - len(failures)
        for error in errors:
            self._enter(error)

    def with_store(self, store: FrameStore) -> Frames:
        """The same book and totals over another store; threads that still fill the old one do no harm."""
        other = copy.copy(self)
        other.store = store
        return other

    def usable(self, frame_ids: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """``slots`` [b, T] of ``frame_ids`` [b, T], with those of bad frames replaced.

        In the place of a bad frame comes the nearest good one of its window (the earlier of two), and where a window
        has none, the good frame of its clip nearest to its middle, for all of it. DataError if the clip has none.
        """
        if not self.bad:
            return slots
        bad = np.isin(frame_ids, np.fromiter(self.bad, np.int64))
        slots = slots.copy()
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            good = np.flatnonzero(~bad[row])
            if len(good):
                nearest = np.abs(good - np.arange(slots.shape[1])[:, None]).argmin(axis=1)
                slots[row] = slots[row, good[nearest]]
            else:
                slots[row] = self._rescue(frame_ids[row], slots[row])
        return slots

    def _rescue(self, frame_ids: np.ndarray, slots: np.ndarray) -> int:
        """Decode the good frame nearest to the middle of a window that has none into the slot of that middle."""
        middle = frame_ids[len(frame_ids) // 2]
        slot = slots[len(slots) // 2 : len(slots) // 2 + 1]
        clip = int(self._dataset.clip_of(frame_ids[:1])[0])
        first, stop = self._dataset.clip_offsets[clip : clip + 2].tolist()
        for frame in sorted(range(first, stop), key=lambda frame: (abs(frame - middle), frame)):
            self.fill(np.array([frame]), slot)
            if frame not in self.bad:
                return int(slot[0])
        raise DataError(
            f"no frame of clip {self._dataset.clip_key(clip)!r} can be used; one of them: {self.bad[int(middle)]}"
        )

    def _error(self, frame: int, reason: str) -> FrameError:
        return FrameError(frame, self._dataset.frame_name(frame), reason)

    def _enter(self, error: FrameError) -> None:
        log.warning("bad frame, replaced by its nearest good neighbour: %s", error)
        with self._lock:
            self.bad[error.frame_id] = error
            bad = list(self.bad.values())
        if len(bad) > self._max_bad:
            others = f"; and {len(bad) - MOST_NAMED} more, all named above" if len(bad) > MOST_NAMED else ""
            raise DataError(
                f"{len(bad)} frames cannot be used, {self._max_bad} are allowed (--max-bad-frames): "
                + "; ".join(map(str, bad[:MOST_NAMED]))
                + others
            )
