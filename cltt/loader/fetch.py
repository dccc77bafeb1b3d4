"""Reading and decoding frames into the slots of a store."""

from __future__ import annotations

import copy
import threading
from typing import NamedTuple

import numpy as np

from cltt.errors import FrameError
from cltt.frames.decoders import Decoder
from cltt.frames.store import FrameStore
from cltt.loader.bad_frames import BadFrames, Dataset
from cltt.region import boxes_of


class Totals(NamedTuple):
    """Of all fetching so far; ``frames_without_box``: read where boxes are looked at, and had none."""

    frames_read: int = 0
    frames_decoded: int = 0
    frames_without_box: int = 0
    bytes_read: int = 0


class FrameFetcher:
    """Brings frames into the slots of ``store``; any number of threads may call :meth:`fetch`."""

    def __init__(self, dataset: Dataset, decoder: Decoder, store: FrameStore, bad: BadFrames) -> None:
        self._dataset, self._decoder, self.store, self._bad = dataset, decoder, store, bad
        self.totals = Totals()
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
        if jpegs:
            look_at = boxes_of(self._dataset, frames[places], self._decoder.framing.region)
            failures = self._decoder.decode(jpegs, slots[places].tolist(), self.store, look_at)
            errors += [self._error(int(frames[places[k]]), reason) for k, reason in failures.items()]
            self._count(jpegs, len(failures), 0 if look_at is None else look_at.count(None))
        for error in errors:
            self._bad.register(error)

    def with_store(self, store: FrameStore) -> FrameFetcher:
        """The same totals over another store; threads that still fill the old one do no harm."""
        other = copy.copy(self)
        other.store = store
        return other

    def _count(self, jpegs: list[bytes], failures: int, without_box: int) -> None:
        more = Totals(len(jpegs), len(jpegs) - failures, without_box, sum(map(len, jpegs)))
        with self._lock:
            self.totals = Totals(*map(sum, zip(self.totals, more, strict=True)))

    def _error(self, frame: int, reason: str) -> FrameError:
        return FrameError(frame, self._dataset.frame_name(frame), reason)
