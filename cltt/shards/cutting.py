"""Cutting folders of frames into clips where frames are missing: the one rule, for a build and for a plain folder."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class ClipCutter:
    """Clips as they are found while files go by in order: one a folder, or several parts of it with gaps between.

    Attributes (one entry a clip): ``first``, the number of its first frame; ``folder``; ``part``, counted from 0 in each
    folder. Frames are counted over the valid files alone.
    """

    def __init__(self) -> None:
        self.first, self.folder, self.part = array("q"), array("q"), array("q")
        self.frames = 0
        self._last_folder = -1
        self._is_cut = False

    def add(self, folders: Array, valid: Array, gap_before: Array | None = None) -> None:
        """The next files: the folder of each, int64 [n] in order; which are frames, and which follow a gap, bool [n]."""
        if not len(folders):
            return
        kept = np.flatnonzero(valid)
        cuts = np.cumsum(~valid if gap_before is None else ~valid | gap_before)
        at = cuts[kept]  # a clip begins where this grew since the last frame, and in each folder
        starts = np.diff(at, prepend=0) > 0
        starts |= np.diff(folders[kept], prepend=self._last_folder) != 0
        if len(kept):
            starts[0] |= self._is_cut
            for frame in np.flatnonzero(starts).tolist():
                self._start(self.frames + frame, int(folders[kept[frame]]))
            self._last_folder = int(folders[kept[-1]])
        self._is_cut = bool(cuts[-1] > (at[-1] if len(kept) else 0))
        self.frames += len(kept)

    def _start(self, frame: int, folder: int) -> None:
        is_next_part = bool(self.folder) and self.folder[-1] == folder
        self.part.append(self.part[-1] + 1 if is_next_part else 0)
        self.first.append(frame)
        self.folder.append(folder)

    def columns(self) -> tuple[Array, Array, Array]:
        """(first frame, length, part) of the clips, int64 [clips] each."""
        first = np.frombuffer(self.first, np.int64)
        return first, np.diff(first, append=self.frames), np.frombuffer(self.part, np.int64)

    def keys(self) -> tuple[Array, Array]:
        """(folders that have a clip, in order; the number of each clip's folder among them)."""
        folders, numbers = np.unique(np.frombuffer(self.folder, np.int64), return_inverse=True)
        return folders, numbers.astype(np.int64)
