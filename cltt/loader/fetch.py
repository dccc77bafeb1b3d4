"""Reading and decoding frames into the slots of a store."""

from __future__ import annotations

import copy
import threading
from typing import Protocol

import numpy as np

from cltt.errors import FrameError
from cltt.files.patience import Patience
from cltt.frames.decoders import Decoder
from cltt.frames.store import FrameStore


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


class Registry(Protocol):
    """The part of :class:`cltt.loader.bad_frames.BadFrames` used here."""

    def __contains__(self, frame: int) -> bool: ...
    def register(self, error: FrameError) -> None: ...


class FrameFetcher:
    """Brings frames into the slots of ``store``; any number of threads may call :meth:`fetch`.

    Attributes:
        read, decoded, bytes_read: totals.
    """

    def __init__(self, dataset: Dataset, decoder: Decoder, store: FrameStore, bad: Registry) -> None:
        self._dataset, self._decoder, self.store, self._bad = dataset, decoder, store, bad
        self.read = self.decoded = self.bytes_read = 0
        self._lock = threading.Lock()

    def fetch(self, frames: np.ndarray, slots: np.ndarray) -> None:
        """Read and decode ``frames`` int64 [n] into ``slots`` int64 [n].

        A bad frame is registered instead, and not tried again. Raises what the registry raises.
        """
        wanted = [k for k, frame in enumerate(frames.tolist()) if frame not in self._bad]
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
        self._count(jpegs, len(failures))
        for error in errors:
            self._bad.register(error)

    def with_store(self, store: FrameStore) -> FrameFetcher:
        """The same totals over another store; threads that still fill the old one do no harm."""
        other = copy.copy(self)
        other.store = store
        return other

    def _count(self, jpegs: list[bytes], failures: int) -> None:
        with self._lock:
            self.read += len(jpegs)
            self.bytes_read += sum(map(len, jpegs))
            self.decoded += len(jpegs) - failures

    def _error(self, frame: int, reason: str) -> FrameError:
        return FrameError(frame, self._dataset.frame_name(frame), reason)
