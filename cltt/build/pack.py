"""Packing planned shards: read the source files, check each frame, write the tar and its part of the index.

A shard is done when its part says so and a tar of that size lies under its final name; both appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from cltt.build.plan import Plan, Planned
from cltt.errors import DataError, InvalidImage
from cltt.files import atomic, threads
from cltt.files.locks import locked_in
from cltt.files.patience import Patience, ShortRead
from cltt.files.regular import open_regular
from cltt.shards import format, tar
from cltt.source import image, scan

READ_THREADS = 32  # they wait for the file system, they do not compute
READ_FRAMES = 8  # frames read by one thread at a time ...
READ_BYTES = 1 << 20  # ... unless they hold more than this
READ_AHEAD = 64  # such pieces in flight ...
HELD_BYTES = 64 << 20  # ... unless they may hold more than this
PROGRESS_SECONDS = 0.05  # between two reports
WRITE_BYTES = 1 << 20  # written at a time
WRITE_BUFFERS = 1000  # IOV_MAX is 1024
# A row of a part: a format.FRAME_DTYPE record and whether the frame is in the shard (_merge.PART_DTYPE).
PART_ROW = struct.Struct("<qIIIHH?")
Progress = Callable[[int, int], None]
Content = bytes | InvalidImage


# ---- reading


class _Reader:
    """Reads planned frames in order; by threads ahead if the file system is slow."""

    def __init__(self, plan: Plan, patience: Patience) -> None:
        self._root = plan.root
        self._max_pixels: int = plan.settings["max_pixels"]
        self._patience = patience
        self._ahead = max(2, min(READ_AHEAD, HELD_BYTES // max(READ_BYTES, plan.largest)))
        self._pool = ThreadPoolExecutor(READ_THREADS)
        self._mapped = threads.PatientMap(self._pool)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, frames: Iterator[Planned]) -> Iterator[list[tuple[Planned, Content]]]:
        """The frames with their contents, a piece at a time."""
        return self._mapped(self._read_piece, _pieces(frames), self._ahead)

    def _read_piece(self, piece: list[Planned]) -> list[tuple[Planned, Content]]:
        return [(frame, _read_planned(self._root, frame, self._max_pixels, self._patience)) for frame in piece]


def _pieces(frames: Iterator[Planned]) -> Iterator[list[Planned]]:
    """The frames in pieces that one thread reads."""
    piece: list[Planned] = []
    held = 0
    for frame in frames:
        piece.append(frame)
        held += frame.size
        if len(piece) == READ_FRAMES or held >= READ_BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def _read_planned(root: bytes, frame: Planned, max_pixels: int, patience: Patience) -> Content:
    """The bytes of a source file, or why they cannot be a picture; DataError if it is not the file that was planned."""
    key, name, size, mtime_ns = frame
    if size == scan.DANGLING:
        return InvalidImage("symbolic link that leads nowhere")
    path = b"%b/%b/%b" % (root, key, name)
    data: Content
    try:
        data, facts = patience.ask(path, lambda: _read_once(path, size, max_pixels))
    except OSError as error:
        what = "has disappeared since the plan was made" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise DataError(f"{_printed(root, frame)} {what} ({error.strerror}); {_AGAIN}") from error
    length = size if isinstance(data, InvalidImage) else len(data)
    if length != size or facts.st_size != size or facts.st_mtime_ns != mtime_ns:
        raise DataError(f"{_printed(root, frame)} has changed since the plan was made; {_AGAIN}")
    return data


def _read_once(path: bytes, size: int, max_pixels: int) -> tuple[Content, os.stat_result]:
    """A file that should have ``size`` bytes, or why it cannot be a picture, and what the system says of it."""
    handle = open_regular(path)
    try:
        facts = os.fstat(handle)
        image.check_file(handle, facts.st_size, max_pixels)
        data = os.read(handle, size + 1)
        while len(data) < facts.st_size and (more := os.read(handle, facts.st_size - len(data))):
            data += more
    except InvalidImage as error:
        return error, facts
    except MemoryError:
        return InvalidImage("it takes more memory than there is"), facts
    finally:
        os.close(handle)
    if len(data) < facts.st_size:
        raise ShortRead(path)
    return data, facts


_AGAIN = "put it back and start again, or make a new plan with --overwrite"


def _printed(root: bytes, frame: Planned) -> str:
    return repr(os.fsdecode(os.path.join(root, frame.path)))


# ---- writing


class _ShardWriter:
    """Writes one tar and collects what the index needs of it."""

    def __init__(self, handle: int, shard: int, settings: dict[str, Any]) -> None:
        self._handle = handle
        self._crc = 0  # of the whole tar: a tenth of all packing; SHA-256 was a quarter
        self._shard = shard
        self._options = {name: settings[name] for name in ("verify", "resize_short", "quality", "max_pixels")}
        self._pending: list[bytes] = []
        self._written = 0
        self.size = 0
        self.rows: list[bytes] = []
        self.notes: list[tuple[str, str, str]] = []  # (path, "skipped" or "reencoded", reason)

    def add(self, frame: Planned, data: Content) -> None:
        try:
            if isinstance(data, InvalidImage):
                raise data
            stored = image.as_stored(data, **self._options)
        except InvalidImage as error:
            self.notes.append((os.fsdecode(frame.path), "skipped", str(error)))
            self.rows.append(PART_ROW.pack(0, 0, 0, self._shard, 0, 0, False))
            return
        if stored.reencoded:
            self.notes.append((os.fsdecode(frame.path), "reencoded", stored.reencoded))
        self._append(frame, stored)

    def _append(self, frame: Planned, stored: image.Stored) -> None:
        data, width, height, _ = stored
        size = len(data)
        header = tar.tar_header(tar.member_name(frame.key, frame.name), size)
        offset = self.size + len(header)
        self.rows.append(PART_ROW.pack(offset, size, zlib.crc32(data), self._shard, width, height, True))
        self._pending += (header, data, bytes(tar.padding(size)))
        self.size = offset + size + tar.padding(size)
        if self.size - self._written >= WRITE_BYTES or len(self._pending) >= WRITE_BUFFERS:
            self._write()

    def _write(self) -> None:
        for piece in self._pending:
            self._crc = zlib.crc32(piece, self._crc)
        done = os.writev(self._handle, self._pending)
        if done < self.size - self._written:  # a full disk takes a part, and says so at the next write
            rest = memoryview(b"".join(self._pending))[done:]
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        self._pending.clear()
        self._written = self.size

    def close(self) -> None:
        self._pending.append(tar.END_OF_ARCHIVE)
        self.size += len(tar.END_OF_ARCHIVE)
        self._write()

    def part(self) -> bytes:
        """The part of the index: a line of JSON, and behind it a PART_ROW for each planned frame."""
        facts = {"size": self.size, "crc": self._crc, "notes": self.notes}
        return json.dumps(facts).encode() + b"\n" + b"".join(self.rows)


def part_path(out: Path, shard: int) -> Path:
    return out / format.BUILD / f"part-{shard:06d}"


def read_part(out: Path, shard: int) -> tuple[dict[str, Any], bytes]:
    """(size, crc and notes; rows as bytes) of a finished shard."""
    facts, _, rows = part_path(out, shard).read_bytes().partition(b"\n")
    return json.loads(facts), rows


def is_done(out: Path, shard: int) -> bool:
    """Whether the shard lies whole under its final name."""
    try:
        size = (out / format.shard_name(shard)).stat().st_size
        return bool(size == read_part(out, shard)[0]["size"])
    except FileNotFoundError:
        return False


class Packer:
    """Packs one shard after another; while one is flushed to disk, the next is written."""

    def __init__(self, plan: Plan, out: Path, patience: Patience) -> None:
        self._plan = plan
        self._out = out
        self._reader = _Reader(plan, patience)
        self._flusher = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._reader.close()
        self._flusher.shutdown()

    def pack(self, shard: int, progress: Progress) -> None:
        """Write ``shard`` unless it is done; :meth:`finish`, or the next shard, waits until it lies on disk.

        ``progress`` is told (frames, bytes) now and then. Waits while another process is at this shard. Raises
        DataError naming the source file that is gone, changed or unreadable, or the shard that cannot be written.
        """
        temporary = self._out / format.BUILD / (format.shard_name(shard) + ".tmp")
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked_in(self._out / format.BUILD, f"{format.shard_name(shard)}.lock", wait=True))
            if is_done(self._out, shard):
                return
            part_path(self._out, shard).unlink(missing_ok=True)
            path = self._out / format.shard_name(shard)
            file = stack.enter_context(atomic.published(path, temporary, sync=False))
            part = self._write(file.fileno(), shard, progress)
            self.finish()
            self._flushing = self._flusher.submit(self._flush, stack.pop_all(), shard, part)

    def finish(self) -> None:
        """Wait until all shards are done."""
        if self._flushing is not None:
            self._flushing.result()

    def _write(self, handle: int, shard: int, progress: Progress) -> bytes:
        """Write the tar; returns its part of the index."""
        writer = _ShardWriter(handle, shard, self._plan.settings)
        told = time.monotonic()
        count = size = 0
        for piece in self._reader.read(self._plan.shard_plan(shard)):
            for frame, data in piece:
                writer.add(frame, data)
                size += max(0, frame.size)
            count += len(piece)
            if time.monotonic() > told + PROGRESS_SECONDS:
                progress(count, size)
                told, count, size = time.monotonic(), 0, 0
        writer.close()
        progress(count, size)
        return writer.part()

    def _flush(self, unpublished: contextlib.ExitStack, shard: int, part: bytes) -> None:
        """Let the part and the tar appear, and give back the shard's lock."""
        with unpublished, atomic.published(part_path(self._out, shard), sync=False) as file:
            file.write(part)
