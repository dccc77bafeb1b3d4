"""Decoded frames that stay in main memory from epoch to epoch, one copy per node.

Where not all frames fit, a fixed share of them, chosen by a hash of their ids, is kept and never evicted, so that any
share saves decoding in proportion (CoorDL: Mohan et al., VLDB 2021, https://arxiv.org/abs/2007.06775).

Legend: h, w height and width of a stored frame; P most pixels of a stored frame.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

from cltt.files import node_files
from cltt.frames.decoders import Decoder
from cltt.loader.bad_frames import Dataset
from cltt.loader.control_group import ranks_on_node
from cltt.loader.memory import frames_used, keep_limit
from cltt.sampling.permutation import GOLDEN
from cltt.sampling.windows import WindowIndex

log = logging.getLogger(__name__)

LAYOUT = 1  # of the file; part of its name
_HEADER = 8  # bytes before a frame's pixels: int32 h and w
_COMPLETE = b"\1"


class KeptFrames:
    """Decoded frames of one dataset by frame id, in a sparse file that all processes of a node map.

    A frame's row is written first, then its flag byte, so a process that is killed at any moment leaves no partly
    written frame visible. Rows are written by system calls: a write through the mapping would kill the process if the
    file system is full. Two processes may write the same frame, as they write the same bytes. Any thread may call it.

    Args:
        key: equal for equal pixels, see :func:`key_of`.
        frames: number of all frames of the dataset, kept or not.
        frame_bytes: P*3.
        folder: where the file lies; None: memory of this process alone, without a name.
        stays: the file is left for later processes. Else the last process that uses it removes it.

    Raises OSError if the file cannot be made or mapped.

    Attributes:
        share: share (0..1) of the windows' frames that are kept; 0 before :meth:`limit` is called.
        planned_bytes: bytes of these frames once all are written.
        row_bytes: bytes per kept frame.
        sizes: int32 [frames, 2], h and w; pixels: uint8 [frames, P*3]. Only rows of frames that :meth:`has` are valid.
    """

    def __init__(self, key: str, frames: int, frame_bytes: int, folder: Path | None = None, *, stays: bool = False):
        self._path = None if folder is None else node_files.path_of(folder, key)
        self._file = node_files.anonymous() if self._path is None else node_files.open_shared(self._path)
        self._end = weakref.finalize(self, node_files.release, self._file, None if stays else self._path)
        self._start = _rounded_to_pages(frames)
        self.row_bytes = _rounded_to_pages(_HEADER + frame_bytes)
        self.share, self.planned_bytes = 0.0, 0
        size = self._start + frames * self.row_bytes
        os.ftruncate(self._file, size)
        memory = mmap.mmap(self._file, size, access=mmap.ACCESS_READ)
        self._complete = np.frombuffer(memory, np.uint8, frames)
        rows = np.ndarray((frames, self.row_bytes), np.uint8, memory, self._start)
        self.sizes = rows[:, :_HEADER].view(np.int32)
        self.pixels = rows[:, _HEADER : _HEADER + frame_bytes]
        if folder is not None:
            for other in node_files.unused(folder):  # of other data or settings, or from before a reboot
                node_files.remove_unused(other)

    @property
    def held_bytes(self) -> int:
        """Memory, or disk, that the file takes now."""
        return os.fstat(self._file).st_blocks * 512

    @property
    def most_bytes(self) -> int | None:
        """Bytes that the file could have if it filled its file system; None: nothing limits it."""
        disk = os.fstatvfs(self._file)
        return self.held_bytes + disk.f_bavail * disk.f_frsize if disk.f_blocks else None

    def limit(self, most: int, frames: int) -> None:
        """Set ``share`` to what of the windows' ``frames`` frames fits in ``most`` bytes and the file system."""
        available = self.most_bytes
        most = most if available is None else min(most, available)
        self.share = min(1.0, most / (frames * self.row_bytes))
        self.planned_bytes = int(self.share * frames * self.row_bytes)

    def has(self, frames: np.ndarray) -> np.ndarray:
        """Which of ``frames`` int64 [n] are completely written: bool [n]."""
        return self._complete[frames] != 0

    def keeps(self, frames: np.ndarray) -> np.ndarray:
        """Which of ``frames`` int64 [n] are to be kept: bool [n], the same in every process and epoch."""
        if self.share >= 1:
            return np.ones(len(frames), bool)
        # Fibonacci hashing (Knuth, TAOCP 3, 6.4) takes the share of consecutive or evenly spaced frames nearly exactly.
        return frames.astype(np.uint64) * GOLDEN < np.uint64(self.share * 2**64)

    def put(self, frame: int, size: np.ndarray, pixels: np.ndarray) -> None:
        """Keep ``frame``: its (h, w) int32 [2] and ``pixels`` uint8 [h*w*3]. None is kept after a failed write."""
        try:
            written = os.pwritev(self._file, [size.data, pixels.data], self._start + frame * self.row_bytes)
            if written == size.nbytes + pixels.nbytes:
                os.pwrite(self._file, _COMPLETE, frame)
                return
            why = "no room is left"
        except OSError as error:
            why = error.strerror or str(error)
        if self.share:
            self.share = 0.0
            log.warning("no further decoded frames are kept in %s: %s", self._path or "memory", why)


def key_of(fingerprint: str, framing: object, decoder: str) -> str:
    """Hash, in hexadecimal, of what the pixels of kept frames depend on: data, framing, decoder.

    The boot of the node is part of it: after a crash of the machine, a flag may be on disk whose frame is not.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    booted = boot.read_text().strip() if boot.is_file() else ""
    content = json.dumps([LAYOUT, fingerprint, repr(framing), decoder, booted])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def open_kept(
    dataset: Dataset, index: WindowIndex, decoder: Decoder, most: int | None, folder: Path | None, cache_bytes: int
) -> KeptFrames | None:
    """Storage for decoded frames that stay from epoch to epoch; None: no frames are kept.

    Args:
        most: bytes allowed; None: a share of the free memory.
        folder: for a file that stays; None: memory that the ranks of the node share.
        cache_bytes: bytes per rank of frame memory in main memory, which the default of ``most`` leaves free.
    """
    if most == 0:
        return None
    shared = folder or (node_files.MEMORY if ranks_on_node() > 1 and node_files.MEMORY.is_dir() else None)
    key = key_of(dataset.fingerprint, decoder.framing, decoder.identity)
    frames, frame_bytes = int(dataset.clip_offsets[-1]), decoder.framing.pixels * 3
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        kept = KeptFrames(key, frames, frame_bytes, shared, stays=folder is not None)
    except (OSError, ValueError, OverflowError) as error:
        log.warning("decoded frames are not kept from epoch to epoch: %s", error)
        return None
    kept.limit(keep_limit(cache_bytes, kept.held_bytes) if most is None else most, frames_used(index))
    return kept


def _rounded_to_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
