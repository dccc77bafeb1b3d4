"""The plan of a build: which frame goes into which shard.

All tasks share the plan, and it is written before any shard. Sizes alone decide where a shard ends: of image files, and
estimates of the frames of videos. So any worker can build any shard by itself.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
import os
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from cltt.files import atomic
from cltt.shards import layout
from cltt.source.odd import Odd
from cltt.source.scan import SourceFrame

PLAN = "plan"
PLAN_INFO = "plan.json"
# A row per frame, with the fields of SourceFrame. name: offset of its name in names.bin. gap: the frame does not
# continue the one before it, because a part of the clip begins or, with split_gaps, the frame number jumps.
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
VIDEOS, VIDEO_OFFSETS = "videos.bin", "video_offsets.npy"  # scan.SourceClip.video of each clip
NOTES = "notes.jsonl"
_READ_FRAMES = 4096  # planned frames per read


class Plan:
    """A plan on disk, opened for reading.

    Attributes: root (path as bytes), settings, num_frames, num_clips, num_shards, num_bytes, largest (bytes of the
    largest image file), has_times (whether there are videos), odd (what the scan found odd).
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
        """One PLAN_DTYPE record per frame, and one for where the last name ends; memory-mapped."""
        return np.load(self.folder / layout.FRAMES, mmap_mode="r")

    def shard_frames(self, shard: int) -> range:
        """The range of frame numbers of one shard."""
        return range(*self._offsets("shards.npy", shard, shard + 2))

    def shard_plan(self, shard: int) -> Iterator[SourceFrame]:
        """The planned frames of one shard in order."""
        frames = self.shard_frames(shard)
        for start in range(frames.start, frames.stop, _READ_FRAMES):
            yield from self._planned(start, min(start + _READ_FRAMES, frames.stop))

    def _planned(self, start: int, stop: int) -> Iterator[SourceFrame]:
        rows = self.frames[start : stop + 1].tolist()
        names = _read_strings(self.folder / "names.bin", [row[3] for row in rows])
        first, last = rows[0][5], rows[-2][5]
        keys, videos = self.keys(first, last + 1), self._videos(first, last + 1)
        for name, (size, mark, entry, _, time, clip, gap) in zip(names, rows[:-1], strict=True):
            yield SourceFrame(name, size, mark, entry, time, gap, keys[clip - first], videos[clip - first])

    def sample(self, count: int) -> Iterator[SourceFrame]:
        """At most ``count`` evenly spread frames, moved back in videos to ones quick to decode."""
        spread = np.linspace(0, self.num_frames - 1, count, dtype=np.int64).tolist()
        for frame in sorted({self._quick_to_decode(frame) for frame in spread}):
            yield from self._planned(frame, frame + 1)

    def _quick_to_decode(self, frame: int) -> int:
        """The first frame of the video with the same entry as ``frame``; in a folder, ``frame``."""
        row = self.frames[frame]
        if np.isnan(row["time"]):
            return frame
        # numpy's searchsorted would copy a column of the whole plan.
        begin = bisect.bisect_left(self.frames, row["clip"], hi=frame, key=itemgetter("clip"))
        return begin + int(np.argmax(self.frames["entry"][begin : frame + 1] == row["entry"]))

    def keys(self, start: int, stop: int) -> list[bytes]:
        """Keys of the folders and videos ``start`` to ``stop``-1."""
        return _read_strings(self.folder / layout.KEYS, self._offsets(layout.KEY_OFFSETS, start, stop + 1))

    def _videos(self, start: int, stop: int) -> list[bytes]:
        return _read_strings(self.folder / VIDEOS, self._offsets(VIDEO_OFFSETS, start, stop + 1))

    def _offsets(self, name: str, start: int, stop: int) -> list[int]:
        offsets: list[int] = np.load(self.folder / name, mmap_mode="r")[start:stop].tolist()
        return offsets

    def notes(self) -> Iterator[tuple[str, str, str]]:
        """The notes of the scan: (path, kind, reason), with the kind "skipped", "cut" or READ."""
        with (self.folder / NOTES).open() as lines:
            for line in lines:
                path, what, reason = json.loads(line)
                yield path, what, reason


def _read_strings(path: Path, offsets: list[int]) -> list[bytes]:
    """The byte strings in a file between neighbouring ``offsets``."""
    first = offsets[0]
    with path.open("rb") as file:
        file.seek(first)
        blob = file.read(offsets[-1] - first)
    return [blob[a - first : b - first] for a, b in itertools.pairwise(offsets)]


def write_strings(folder: Path, name: str, offsets_name: str, strings: list[bytes]) -> None:
    """Write strings into ``name``, their offsets (int64 [strings + 1]) into ``offsets_name``."""
    with atomic.published(folder / name, sync=False) as file:
        file.write(b"".join(strings))
    with atomic.published(folder / offsets_name, sync=False) as file:
        np.save(file, np.cumsum([0, *map(len, strings)], dtype=np.int64))
