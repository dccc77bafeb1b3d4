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
from cltt.loader.kept import KeptFrames
from cltt.region import boxes_of


class Totals(NamedTuple):
    """Of all fetching so far.

    ``frames_without_box``: read where boxes are looked at, and had none. ``frames_copied``: from kept frames.
    """

    frames_read: int = 0
    frames_decoded: int = 0
    frames_without_box: int = 0
    bytes_read: int = 0
    frames_copied: int = 0


class FrameFetcher:
    """Brings frames into the slots of ``store``; any number of threads may call :meth:`fetch`.

    ``kept``: asked for frames before they are decoded, and given those that it wants.
    """

    def __init__(
        self, dataset: Dataset, decoder: Decoder, store: FrameStore, bad: BadFrames, kept: KeptFrames | None = None
    ) -> None:
        self._dataset, self._decoder, self.store, self._bad, self._kept = dataset, decoder, store, bad, kept
        self.totals = Totals()
        self._lock = threading.Lock()

    def fetch(self, frames: np.ndarray, slots: np.ndarray) -> None:
        """Read and decode ``frames`` int64 [n] into ``slots`` int64 [n], or copy those that are kept.

        A bad frame is registered instead, and not tried again. Raises what the registry raises.
        """
        wanted = [k for k, frame in enumerate(frames.tolist()) if frame not in self._bad]
        frames, slots = self._copy_kept(frames[wanted], slots[wanted])
        if not len(frames):
            return
        found = self._dataset.read_each(frames)
        errors = [each for each in found if isinstance(each, FrameError)]
        jpegs = [each for each in found if not isinstance(each, FrameError)]
        places = [place for place, each in enumerate(found) if not isinstance(each, FrameError)]
        if jpegs:
            look_at = boxes_of(self._dataset, frames[places], self._decoder.framing.region)
            failures = self._decoder.decode(jpegs, slots[places].tolist(), self.store, look_at)
            errors += [self._error(int(frames[places[k]]), reason) for k, reason in failures.items()]
            without_box = 0 if look_at is None else look_at.count(None)
            self._count(Totals(len(jpegs), len(jpegs) - len(failures), without_box, sum(map(len, jpegs))))
            good = [place for k, place in enumerate(places) if k not in failures]
            self._keep(frames[good], slots[good])
        for error in errors:
            self._bad.register(error)

    def with_store(self, store: FrameStore) -> FrameFetcher:
        """The same totals over another store; threads that still fill the old one do no harm."""
        other = copy.copy(self)
        other.store = store
        return other

    def _copy_kept(self, frames: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bring what is kept of ``frames`` into its ``slots``; returns the other frames, and theirs."""
        if self._kept is None or not (held := self._kept.has(frames)).any():
            return frames, slots
        found = frames[held]
        self.store.write_rows(slots[held], self._kept.sizes[found], self._kept.pixels[found])
        self._count(Totals(frames_copied=len(found)))
        return frames[~held], slots[~held]

    def _keep(self, frames: np.ndarray, slots: np.ndarray) -> None:
        """Keep those of ``frames``, decoded into ``slots``, that are to be kept."""
        if self._kept is None or not (chosen := self._kept.keeps(frames)).any():
            return
        frames, slots = frames[chosen], slots[chosen]
        sizes = self.store.sizes[slots]
        for frame, size, row in zip(frames.tolist(), sizes, self.store.host_rows(slots), strict=True):
            self._kept.put(frame, size, row[: size.prod() * 3])

    def _count(self, more: Totals) -> None:
        with self._lock:
            self.totals = Totals(*map(sum, zip(self.totals, more, strict=True)))

    def _error(self, frame: int, reason: str) -> FrameError:
        return FrameError(frame, self._dataset.frame_name(frame), reason)
