"""The plan of a build: which frame goes into which shard, on disk before any shard is written and shared by all tasks.

Shards are cut by the sizes of the source files alone, so the plan needs no look into a frame, and any worker can build
any shard alone.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cltt.shards import layout
from cltt.source.clips import Planned
from cltt.source.odd import Odd

PLAN = "plan"
PLAN_INFO = "plan.json"
# A scan.SourceFrame; name: where its name starts in names.bin; gap: it does not follow the frame before it, as it
# begins a part or the frame number jumped (where gaps split clips).
PLAN_DTYPE = np.dtype(
    [
        ("size", "<i8"),
        ("mark", "<i8"),
        ("entry", "<i8"),
        ("name", "<i8"),
        ("time", "<f8"),
        ("clip", "<u4"),
        ("gap", "?"),
    ]
)
VIDEOS, VIDEO_OFFSETS = (
    "videos.bin",
    "video_offsets.npy",
)  # what the frames of each clip have in common: scan.SourceClip
NOTES = "notes.jsonl"
_READ_FRAMES = 4096  # planned frames held at a time


class Plan:
    """A plan on disk, opened for reading.

    Attributes: root (bytes), settings, num_frames, num_clips, num_shards, num_bytes, largest (bytes of a frame),
    has_times (there are videos), odd (what the scan found).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        info = json.loads((folder / PLAN_INFO).read_text())
        self.root_dir: str = info["root_dir"]
        self.root = os.fsencode(self.root_dir)
        self.settings: dict[str, Any] = info["settings"]
        self.num_frames: int = info["frames"]
        self.num_clips: int = info["clips"]
        self.num_shards: int = info["shards"]
        self.num_bytes: int = info["bytes"]
        self.largest: int = info["largest"]
        self.has_times: bool = info["has_times"]
        self.odd = [Odd(*record) for record in info.get("odd", ())]

    @functools.cached_property
    def frames(self) -> np.ndarray[Any, Any]:
        """One PLAN_DTYPE record a frame and one behind the last; memory-mapped."""
        return np.load(self.folder / layout.FRAMES, mmap_mode="r")

    def shard_frames(self, shard: int) -> range:
        """Planned frames of one shard."""
        return range(*self._offsets("shards.npy", shard, shard + 2))

    def shard_plan(self, shard: int) -> Iterator[Planned]:
        """All frames of one shard in order."""
        frames = self.shard_frames(shard)
        for start in range(frames.start, frames.stop, _READ_FRAMES):
            yield from self._planned(start, min(start + _READ_FRAMES, frames.stop))

    def _planned(self, start: int, stop: int) -> Iterator[Planned]:
        rows = self.frames[start : stop + 1].tolist()
        names = _cut(self.folder / "names.bin", [row[3] for row in rows])
        first, last = rows[0][5], rows[-2][5]
        keys, videos = self.keys(first, last + 1), self._videos(first, last + 1)
        for name, (size, mark, entry, _, time, clip, _) in zip(names, rows[:-1], strict=True):
            yield Planned(keys[clip - first], videos[clip - first], name, size, mark, entry, time)

    def sample(self, count: int) -> Iterator[Planned]:
        """At most ``count`` frames, evenly spread."""
        for frame in np.unique(np.linspace(0, self.num_frames - 1, count, dtype=np.int64)).tolist():
            yield from self._planned(frame, frame + 1)

    def keys(self, start: int, stop: int) -> list[bytes]:
        """Keys of the folders and videos ``start`` to ``stop``-1."""
        return _cut(self.folder / layout.KEYS, self._offsets(layout.KEY_OFFSETS, start, stop + 1))

    def _videos(self, start: int, stop: int) -> list[bytes]:
        return _cut(self.folder / VIDEOS, self._offsets(VIDEO_OFFSETS, start, stop + 1))

    def _offsets(self, name: str, start: int, stop: int) -> list[int]:
        offsets: list[int] = np.load(self.folder / name, mmap_mode="r")[start:stop].tolist()
        return offsets

    def notes(self) -> Iterator[tuple[str, str, str]]:
        """(path, "skipped" or "cut", reason) of what the scan left out, and where it cuts clips."""
        with (self.folder / NOTES).open() as lines:
            for line in lines:
                path, what, reason = json.loads(line)
                yield path, what, reason


def _cut(path: Path, offsets: list[int]) -> list[bytes]:
    """The pieces of a blob between neighbouring ``offsets``."""
    with path.open("rb") as file:
        file.seek(offsets[0])
        blob = file.read(offsets[-1] - offsets[0])
    first = offsets[0]
    return [blob[a - first : b - first] for a, b in itertools.pairwise(offsets)]
