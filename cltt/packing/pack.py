"""Packing planned shards: read and check frames, write each tar and its part of the index.

A shard is done if its part of the index exists and its tar, under its final name, has the size that the part records.
Both are written under temporary names and then renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cltt.errors import InvalidImage
from cltt.files import atomic
from cltt.files.locks import locked_in
from cltt.packing.plan import Plan
from cltt.shards import layout, tar
from cltt.source import image
from cltt.source.clips import FrameReader, Result
from cltt.source.odd import Odd, merge_odd
from cltt.source.scan import SourceFrame

PROGRESS_SECONDS = 0.05  # between two calls of the progress function
WRITE_BYTES = 1 << 20  # per write
WRITE_BUFFERS = 1000  # per write: IOV_MAX is 1024
# A row of a part. full_width, full_height: size of the upright source before resizing. good: the frame is stored.
PART_DTYPE = np.dtype([*layout.FRAME_FIELDS, ("full_width", "<u4"), ("full_height", "<u4"), ("good", "?")])
Progress = Callable[[int, int, float], None]  # frames, bytes of source, seconds of video


# ---- writing


class _ShardWriter:
    """Writes one tar, and collects its part of the index."""

    def __init__(self, handle: int, shard: int) -> None:
        self._handle = handle
        self._crc = 0  # of the whole tar: takes a tenth of the packing time; SHA-256 took a quarter
        self._shard = shard
        self._pending: list[bytes] = []
        self._written = 0
        self.size = 0
        self._rows: list[tuple[int, ...]] = []
        self._packed: list[bytes] = []  # older rows as bytes: a tenth of the memory of tuples
        self.notes: list[tuple[str, str, str]] = []  # (path, "skipped" or "reencoded", reason)
        self.odd: list[Odd] = []
        self._last = b"", (0, 0)  # key and size of the frame before

    def add(self, frame: SourceFrame, stored: Result) -> None:
        if isinstance(stored, InvalidImage):
            self.notes.append((os.fsdecode(frame.path), "skipped", str(stored)))
            self._rows.append((0, 0, 0, self._shard, 0, 0, 0, 0, False))
            return
        if stored.reencoded:
            self.notes.append((os.fsdecode(frame.path), "reencoded", stored.reencoded))
        if stored.reencoded in (image.MAYBE_DEPTH, image.MAYBE_MASK):
            what = "PNGs of 16 bits or with a palette, perhaps depth or masks"
            self._note(Odd(what, os.fsdecode(frame.path), "--exclude GLOB leaves them out"))
        self._note_size_change(frame, (stored.full_width, stored.full_height))
        self._append(frame, stored)

    def _note_size_change(self, frame: SourceFrame, size: tuple[int, int]) -> None:
        key, before = self._last
        if key == frame.key and size != before:
            what, sizes = "changes of frame size within a clip", f"{before[0]}x{before[1]} to {size[0]}x{size[1]}"
            self._note(Odd(what, f"{os.fsdecode(frame.path)}: {sizes}", "--exclude GLOB leaves files out"))
        self._last = frame.key, size

    def _note(self, odd: Odd) -> None:
        self.odd = merge_odd([*self.odd, odd])

    def _append(self, frame: SourceFrame, stored: image.Stored) -> None:
        data, width, height, _, full_width, full_height = stored
        size = len(data)
        header = tar.tar_header(tar.member_name(frame.key, frame.name), size)
        offset = self.size + len(header)
        sizes = width, height, full_width, full_height
        self._rows.append((offset, size, zlib.crc32(data), self._shard, *sizes, True))
        self._pending += (header, data, bytes(tar.padding(size)))
        self.size = offset + size + tar.padding(size)
        if self.size - self._written >= WRITE_BYTES or len(self._pending) >= WRITE_BUFFERS:
            self._write()

    def _write(self) -> None:
        for piece in self._pending:
            self._crc = zlib.crc32(piece, self._crc)
        done = os.writev(self._handle, self._pending)
        if done < self.size - self._written:  # a disk that fills up writes less, and the next write fails
            rest = memoryview(b"".join(self._pending))[done:]
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        self._pending.clear()
        self._written = self.size
        self._packed.append(np.array(self._rows, PART_DTYPE).tobytes())
        self._rows.clear()

    def close(self) -> None:
        self._pending.append(tar.END_OF_ARCHIVE)
        self.size += len(tar.END_OF_ARCHIVE)
        self._write()

    def part(self) -> bytes:
        """The part of the index: one line of JSON, then one PART_DTYPE record per planned frame."""
        summary = {"size": self.size, "crc": self._crc, "notes": self.notes, "odd": merge_odd(self.odd)}
        return json.dumps(summary).encode() + b"\n" + b"".join(self._packed)


def part_path(out: Path, shard: int) -> Path:
    return out / layout.BUILD / f"part-{shard:06d}"


def read_part(out: Path, shard: int) -> tuple[dict[str, Any], bytes]:
    """A finished shard's part: (a dict with size, crc, notes and odd; PART_DTYPE rows as bytes)."""
    summary, _, rows = part_path(out, shard).read_bytes().partition(b"\n")
    return json.loads(summary), rows


def is_done(out: Path, shard: int) -> bool:
    """Whether the shard is complete under its final name."""
    try:
        size = (out / layout.shard_name(shard)).stat().st_size
        return bool(size == read_part(out, shard)[0]["size"])
    except FileNotFoundError:
        return False


def _metered(packed: Iterable[tuple[SourceFrame, Result]], progress: Progress) -> Iterator[tuple[SourceFrame, Result]]:
    """The frames of ``packed``; ``progress`` is called with what they are every PROGRESS_SECONDS, and at their end."""
    frames, size, seconds, told = 0, 0, 0.0, time.monotonic()
    before = b"", 0.0  # video and time of the frame before
    for frame, stored in packed:
        yield frame, stored
        frames += 1
        size += max(0, frame.size)
        if frame.video:
            seconds += max(0.0, frame.time - before[1]) if frame.key == before[0] else 0.0
            before = frame.key, frame.time
        if time.monotonic() > told + PROGRESS_SECONDS:
            progress(frames, size, seconds)
            frames, size, seconds, told = 0, 0, 0.0, time.monotonic()
    progress(frames, size, seconds)


class Packer:
    """Packs one shard after another; the next is written while the last one is flushed to disk."""

    def __init__(self, plan: Plan, out: Path) -> None:
        self._plan = plan
        self._out = out
        options = {name: plan.settings[name] for name in ("verify", "resize_short", "quality", "max_pixels")}
        self._reader = FrameReader(plan.root, plan.largest, **options)
        self._flusher = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._flusher.shutdown()

    def pack(self, shard: int, progress: Progress) -> None:
        """Write ``shard`` unless it is done.

        :meth:`finish`, or the next call, waits until it is on disk. Calls ``progress`` with (frames, bytes, seconds of
        video) packed since the last call. Waits while another process packs this shard. Raises DataError naming the
        source file that is gone, changed or unreadable, or the shard that cannot be written.
        """
        temporary = self._out / layout.BUILD / (layout.shard_name(shard) + ".tmp")
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked_in(self._out / layout.BUILD, f"{layout.shard_name(shard)}.lock", wait=True))
            if is_done(self._out, shard):
                return
            part_path(self._out, shard).unlink(missing_ok=True)
            path = self._out / layout.shard_name(shard)
            file = stack.enter_context(atomic.published(path, temporary, sync=False))
            part = self._write(file.fileno(), shard, progress)
            self.finish()
            self._flushing = self._flusher.submit(self._flush, stack.pop_all(), shard, part)

    def finish(self) -> None:
        """Wait until all shards are on disk."""
        if self._flushing is not None:
            self._flushing.result()

    def _write(self, handle: int, shard: int, progress: Progress) -> bytes:
        """Write the tar; returns its part of the index."""
        writer = _ShardWriter(handle, shard)
        for frame, stored in _metered(self._reader.read(self._plan.shard_plan(shard)), progress):
            writer.add(frame, stored)
        writer.close()
        return writer.part()

    def _flush(self, unpublished: contextlib.ExitStack, shard: int, part: bytes) -> None:
        """Publish the part; leaving ``unpublished`` then publishes the tar and releases the lock."""
        with unpublished, atomic.published(part_path(self._out, shard), sync=False) as file:
            file.write(part)
