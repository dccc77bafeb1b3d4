"""The plan of a build: which frame goes into which shard, on disk before any shard is written and shared by all tasks.

Shards are cut by the sizes of the source files alone, so the plan needs no look into a frame, and any worker can build
any shard alone. Reading a shard's part needs no numpy: importing that would take a packing process longer than packing
a thousand frames.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cltt.files import npy
from cltt.shards import format
from cltt.source import scan

if TYPE_CHECKING:
    import numpy as np

PLAN = "plan"
PLAN_FACTS = "plan.json"
ROW = struct.Struct("<qqqI?")  # size, mtime_ns, start of the name, clip, gap: _planning.PLAN_DTYPE
_OFFSET = struct.Struct("<q")
_READ_FRAMES = 4096  # planned frames held at a time


class Planned(NamedTuple):
    """One planned frame with all that reading it takes."""

    key: bytes
    name: bytes
    size: int
    mtime_ns: int

    @property
    def path(self) -> bytes:
        return scan.join_key(self.key, self.name)


class Plan:
    """A plan on disk, opened for reading.

    Attributes: root (bytes), settings, num_frames, num_clips, num_shards, num_bytes, largest (bytes of a frame).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / PLAN_FACTS).read_text())
        self.root_dir: str = facts["root_dir"]
        self.root = os.fsencode(self.root_dir)
        self.settings: dict[str, Any] = facts["settings"]
        self.num_frames: int = facts["frames"]
        self.num_clips: int = facts["clips"]
        self.num_shards: int = facts["shards"]
        self.num_bytes: int = facts["bytes"]
        self.largest: int = facts["largest"]

    @functools.cached_property
    def frames(self) -> np.ndarray[Any, Any]:
        """One ``_planning.PLAN_DTYPE`` record a frame and one behind the last; memory-mapped."""
        import numpy as np

        return np.load(self.folder / format.FRAMES, mmap_mode="r")

    def shard_frames(self, shard: int) -> range:
        """Planned frames of one shard."""
        return range(*self._offsets("shards.npy", shard, shard + 2))

    def shard_plan(self, shard: int) -> Iterator[Planned]:
        """All frames of one shard in order."""
        frames = self.shard_frames(shard)
        for start in range(frames.start, frames.stop, _READ_FRAMES):
            yield from self._planned(start, min(start + _READ_FRAMES, frames.stop))

    def _planned(self, start: int, stop: int) -> Iterator[Planned]:
        rows = npy.read_npy_rows(self.folder / format.FRAMES, ROW, start, stop + 1)
        names = _cut(self.folder / "names.bin", [row[2] for row in rows])
        first = rows[0][3]
        keys = self.keys(first, rows[-2][3] + 1)
        for name, (size, mtime_ns, _, clip, _) in zip(names, rows[:-1], strict=True):
            yield Planned(keys[clip - first], name, size, mtime_ns)

    def keys(self, start: int, stop: int) -> list[bytes]:
        """Keys of the clip folders ``start`` to ``stop``-1."""
        return _cut(self.folder / format.KEYS, self._offsets(format.KEY_OFFSETS, start, stop + 1))

    def _offsets(self, name: str, start: int, stop: int) -> list[int]:
        return [offset for (offset,) in npy.read_npy_rows(self.folder / name, _OFFSET, start, stop)]

    def skipped(self) -> Iterator[tuple[str, str]]:
        """(path, reason) of what the scan left out."""
        with (self.folder / "skipped.jsonl").open() as lines:
            for line in lines:
                path, reason = json.loads(line)
                yield path, reason


def _cut(path: Path, offsets: list[int]) -> list[bytes]:
    """The pieces of a blob between neighbouring ``offsets``."""
    with path.open("rb") as file:
        file.seek(offsets[0])
        blob = file.read(offsets[-1] - offsets[0])
    first = offsets[0]
    return [blob[a - first : b - first] for a, b in itertools.pairwise(offsets)]
