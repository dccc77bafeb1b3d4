"""Packing one planned shard: read the source files ahead, check each frame, write the tar and its part of the index.

A shard is done when its part says so and a tar of that size lies under its final name; both appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from cltt import format, source
from cltt._plan import Plan
from cltt.errors import DataError

READ_THREADS = 32  # they wait for the file system, they do not compute
READ_FRAMES = 8  # frames read by one thread at a time ...
READ_BYTES = 1 << 20  # ... unless they hold more than this
READ_AHEAD = 64  # such pieces in flight ...
HELD_BYTES = 64 << 20  # ... unless they may hold more than this
# One row a planned frame: a format.FRAME_DTYPE record and whether the frame is in the shard.
PART_DTYPE = np.dtype([*((name, format.FRAME_DTYPE[name]) for name in format.FRAME_DTYPE.names or ()), ("good", "?")])
Progress = Callable[[int, int], None]


class _Planned(NamedTuple):
    """One planned frame with all that reading it takes."""

    key: bytes
    name: bytes
    size: int
    mtime_ns: int

    @property
    def path(self) -> bytes:
        return source.join_key(self.key, self.name)


def _pieces(plan: Plan, shard: int) -> Iterator[list[_Planned]]:
    """The frames of a shard, in pieces that one thread reads."""
    frames = plan.shard_frames(shard)
    piece: list[_Planned] = []
    held = 0
    for start in range(frames.start, frames.stop, 4096):
        stop = min(start + 4096, frames.stop)
        rows = np.array(plan.frames[start:stop])
        facts = zip(plan.paths(start, stop), rows["size"].tolist(), rows["mtime_ns"].tolist(), strict=True)
        for (key, name), size, mtime_ns in facts:
            piece.append(_Planned(key, name, size, mtime_ns))
            held += max(0, size)
            if len(piece) == READ_FRAMES or held >= READ_BYTES:
                yield piece
                piece, held = [], 0
    if piece:
        yield piece


def _ahead(plan: Plan, shard: int) -> int:
    """Pieces to read ahead without holding more than about HELD_BYTES."""
    frames = plan.shard_frames(shard)
    largest = int(plan.frames["size"][frames.start : frames.stop].max())
    return max(2, min(READ_AHEAD, HELD_BYTES // max(READ_BYTES, largest)))


def _read_planned(root: bytes, frame: _Planned) -> bytes | None:
    """The bytes of a source file, None for a dangling link; DataError if it is not the file that was planned."""
    if frame.size == source.DANGLING:
        return None
    path = os.path.join(root, frame.path)
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            facts = os.fstat(handle)
            data = os.read(handle, facts.st_size + 1)
            while len(data) < facts.st_size and (more := os.read(handle, facts.st_size - len(data))):
                data += more
        finally:
            os.close(handle)
    except OSError as error:
        what = "has disappeared since the plan was made" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise DataError(f"{os.fsdecode(path)!r} {what} ({error.strerror}); {_AGAIN}") from error
    if (facts.st_size, facts.st_mtime_ns, len(data)) != (frame.size, frame.mtime_ns, frame.size):
        raise DataError(f"{os.fsdecode(path)!r} has changed since the plan was made; {_AGAIN}")
    return data


_AGAIN = "put it back and start again, or make a new plan with --overwrite"


class _ShardWriter:
    """Writes one tar and collects what the index needs of it."""

    def __init__(self, file: IO[bytes], shard: int) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._shard = shard
        self.size = 0
        self.rows: list[tuple[int, int, int, int, int, int, bool]] = []
        self.notes: list[tuple[str, str, str]] = []  # (path, "skipped" or "reencoded", reason)
        self._pending: list[bytes] = []

    def add(self, frame: _Planned, data: bytes | None, settings: dict[str, Any]) -> None:
        try:
            if data is None:
                raise source.BrokenPicture("symbolic link that leads nowhere")
            stored = source.as_stored(
                data,
                verify=settings["verify"],
                resize_short=settings["resize_short"],
                quality=settings["quality"],
            )
        except source.BrokenPicture as error:
            self.notes.append((os.fsdecode(frame.path), "skipped", str(error)))
            self.rows.append((0, 0, 0, self._shard, 0, 0, False))
            return
        if stored.reencoded:
            self.notes.append((os.fsdecode(frame.path), "reencoded", stored.reencoded))
        self._append(frame, stored)

    def _append(self, frame: _Planned, stored: source.Stored) -> None:
        size = len(stored.data)
        header = format.tar_header(format.member_name(frame.key, frame.name), size)
        offset = self.size + len(header)
        crc = zlib.crc32(stored.data)
        self.rows.append((offset, size, crc, self._shard, stored.width, stored.height, True))
        self._pending += [header, stored.data, bytes(format.padding(size))]
        self.size = offset + size + format.padding(size)

    def flush(self) -> None:
        data = b"".join(self._pending)
        self._pending.clear()
        self._digest.update(data)
        self._file.write(data)

    def close(self) -> None:
        self._pending.append(format.END_OF_ARCHIVE)
        self.size += len(format.END_OF_ARCHIVE)
        self.flush()

    def facts(self) -> dict[str, Any]:
        return {"size": self.size, "sha256": self._digest.hexdigest(), "notes": self.notes}


def part_paths(out: Path, shard: int) -> tuple[Path, Path]:
    """(records, facts) of one shard's part of the index."""
    stem = out / format.BUILD / f"part-{shard:06d}"
    return stem.with_suffix(".npy"), stem.with_suffix(".json")


def is_done(out: Path, shard: int) -> bool:
    """Whether the shard lies whole under its final name."""
    tar, (_, facts) = out / format.shard_name(shard), part_paths(out, shard)
    try:
        return tar.stat().st_size == json.loads(facts.read_text())["size"]
    except FileNotFoundError:
        return False


def pack_shard(plan: Plan, out: Path, shard: int, progress: Progress) -> None:
    """Write one shard and its part of the index; ``progress`` is told (frames, bytes) now and then.

    Raises DataError naming the source file that is gone, changed or unreadable.
    """
    records, facts = part_paths(out, shard)
    facts.unlink(missing_ok=True)
    temporary = out / format.BUILD / (format.shard_name(shard) + ".tmp")
    tar = out / format.shard_name(shard)
    with ThreadPoolExecutor(READ_THREADS) as pool, format.published(tar, temporary, sync=False) as file:
        writer = _ShardWriter(file, shard)

        def read(piece: list[_Planned]) -> list[tuple[_Planned, bytes | None]]:
            return [(frame, _read_planned(plan.root, frame)) for frame in piece]

        for piece in source.ordered_map(pool, read, _pieces(plan, shard), _ahead(plan, shard)):
            for frame, data in piece:
                writer.add(frame, data, plan.settings)
            writer.flush()
            progress(len(piece), sum(max(0, frame.size) for frame, _ in piece))
        writer.close()
        with format.published(records, sync=False) as part:
            np.save(part, np.array(writer.rows, PART_DTYPE))
        format.write_json(facts, writer.facts(), sync=False)
