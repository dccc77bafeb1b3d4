"""Peers that draw windows at random with threads alone: one class per peer, all with the same batches.

Each batch is the work of one thread, in memory that is used again; no process, no CRC-32, no resume. Frames are decoded
by libjpeg-turbo at a half, quarter or eighth of their size where that suffices, resized by our own filter with OpenCV's
quick kernels, and converted to floats by our look-up tables: what is left to differ is which frames are decoded when.
"""

from __future__ import annotations

import itertools
import os
import queue
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.loader_peers import Batches, Peer, S, Wanted, drawn_windows
from cltt.frames.batch_cpu import FrameWriter
from cltt.frames.filters import PLAIN_SHRINK, quick_kernels, resize, shrink
from cltt.frames.gather import BatchFormat
from cltt.source import libjpeg


def averaged(source: np.ndarray, target: np.ndarray) -> None:
    """Resize by area averages, for frames decoded at full size: cheaper there than our own filter."""
    plain = source.shape[0] <= PLAIN_SHRINK * target.shape[0]
    resize(source, target, cv2.INTER_LINEAR if plain else cv2.INTER_AREA)


class ThreadPool(Peer):
    """simplejpeg in a pool of threads, bytes by offset from the tar files."""

    name = "thread pool, simplejpeg"
    timed = 48
    resize = staticmethod(shrink)

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        dataset = wanted.dataset
        self._records = dataset.frame_records(range(dataset.num_frames))
        self._shards = [os.open(Path(dataset.path) / shard["name"], os.O_RDONLY) for shard in dataset.shards]
        batch_format = BatchFormat(torch.float32 if wanted.floats else torch.uint8, not wanted.floats, "imagenet")
        self._writer = FrameWriter(S, batch_format)
        self._scratch = local()
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()

    def batches(self) -> Batches:
        shape = self.wanted.batch, self.wanted.index.window_size
        self._free = queue.SimpleQueue()
        for _ in range(2 * self.wanted.workers + 3):  # under way, made ahead, and the consumer's
            self._free.put(self._new_rows())
        for rows in self.made_ahead(drawn_windows(self.wanted.index, self.wanted.batch)):
            yield self._writer.as_batch(rows.reshape(-1), shape)
            self._free.put(rows)

    def _new_rows(self) -> np.ndarray:
        return np.empty((self.wanted.batch * self.wanted.index.window_size, self._writer.frame_bytes), np.uint8)

    def made_ahead(self, windows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Memory of the batches of ``windows`` int64 [B], in order, made by the threads."""
        with ThreadPoolExecutor(self.wanted.workers) as pool:
            ahead = deque(pool.submit(self.make, ids) for ids in itertools.islice(windows, 2 * self.wanted.workers))
            try:
                for ids in windows:
                    yield ahead.popleft().result()
                    ahead.append(pool.submit(self.make, ids))
            finally:
                for future in ahead:
                    future.cancel()

    def make(self, ids: np.ndarray) -> np.ndarray:
        """One batch of the windows ``ids`` int64 [B]: uint8 [B*T, frame bytes]."""
        rows = self._free.get()
        self.write(self.wanted.index.frames(ids).reshape(-1).tolist(), rows)
        return rows

    def write(self, places: list[int], rows: np.ndarray) -> None:
        """Frames ``places`` into ``rows`` uint8 [len(places), frame bytes]."""
        with quick_kernels:
            for k in range(0, len(places), self._writer.turn):
                part = places[k : k + self._writer.turn]
                self._writer.write(self.frames(part), rows[k : k + len(part)])

    def frames(self, places: list[int]) -> Iterator[np.ndarray]:
        """Frames uint8 [S, S, 3], each used before the next."""
        for place in places:
            yield self.square(self.decode(place))

    def decode(self, place: int) -> np.ndarray:
        """A frame uint8 [h, w, 3], as small as it can be decoded with no side below S."""
        record = self._records[place]
        height, width = int(record["height"]), int(record["width"])
        reduction = libjpeg.largest_reduction(min(height, width) / S)
        buffer = self._own("decoded", (height // reduction + 1) * (width // reduction + 1) * 3)
        return libjpeg.decode(self.jpeg(place), height, width, reduction, buffer)

    def jpeg(self, place: int) -> bytes:
        record = self._records[place]
        return os.pread(self._shards[record["shard"]], int(record["size"]), int(record["offset"]))

    def square(self, frame: np.ndarray) -> np.ndarray:
        """The central square of ``frame`` uint8 [h, w, 3] at S x S, in this thread's memory."""
        side = min(frame.shape[:2])
        top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
        target = self._own("square", S * S * 3).reshape(S, S, 3)
        self.resize(frame[top : top + side, left : left + side], target)
        return target

    def _own(self, name: str, size: int) -> np.ndarray:
        held: np.ndarray | None = getattr(self._scratch, name, None)
        if held is None or held.size < size:
            held = np.empty(size, np.uint8)
            setattr(self._scratch, name, held)
        return held


class ThreadPoolFiles(ThreadPool):
    """The same from a JPEG file per frame: open, read, close."""

    name = "thread pool, simplejpeg, JPEG files"

    def jpeg(self, place: int) -> bytes:
        return Path(self.wanted.files[place]).read_bytes()


class Spdl(ThreadPool):
    """SPDL's pipeline around the same function as the thread pool's."""

    name = "SPDL, simplejpeg"
    needs = "spdl.pipeline"

    def made_ahead(self, windows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        from spdl.pipeline import PipelineBuilder

        workers = self.wanted.workers
        builder = (
            PipelineBuilder().add_source(windows).pipe(self.make, concurrency=workers, output_order="input").add_sink(1)
        )
        pipeline = builder.build(num_threads=workers)
        with pipeline.auto_stop():
            try:
                yield from pipeline.get_iterator()
            finally:
                for _ in range(workers):  # the pipeline ends once all its threads have: none may wait for memory
                    self._free.put(self._new_rows())


class SpdlOwn(Spdl):
    """SPDL's pipeline with SPDL's decoder (FFmpeg's), which crops and resizes, too.

    FFmpeg's decoder can halve frames (``lowres``), but SPDL then crops by the full size: the pixels are wrong.
    """

    name = "SPDL, its own decoder"
    needs = "spdl.io"
    timed = 24

    def frames(self, places: list[int]) -> Iterator[np.ndarray]:
        import spdl.io

        filters = rf"crop=min(iw\,ih):min(iw\,ih),scale={S}:{S}:flags=bilinear,format=rgb24"
        config = spdl.io.decode_config(decoder_options={"threads": "1"})
        sources: list[Any] = [self.jpeg(place) for place in places]
        made = spdl.io.load_image_batch(sources, width=None, height=None, decode_config=config, filter_desc=filters)
        yield from spdl.io.to_numpy(made)


class TorchCodec(ThreadPool):
    """torchcodec's JPEG decoder in the same pool; it decodes at the full size alone."""

    name = "thread pool, torchcodec"
    needs = "torchcodec.decoders"
    timed = 48
    resize = staticmethod(averaged)

    def decode(self, place: int) -> np.ndarray:
        from torchcodec.decoders import decode_jpeg

        decoded: np.ndarray = decode_jpeg(self.jpeg(place)).permute(1, 2, 0).numpy()
        return decoded


class RawSquares(ThreadPool):
    """S x S pixels in a memory map, nothing to decode: the upper bound. The map holds equal files once."""

    name = f"raw pixels {S}x{S} in a memory map"
    timed = 256

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        inodes = [os.stat(file).st_ino for file in wanted.files]
        _, first, self._rows = np.unique(inodes, return_index=True, return_inverse=True)
        path = Path(wanted.dataset.path) / f"{type(self).__name__}.raw"
        shapes, ends = [], [0]
        with path.open("wb") as file:
            for place in first.tolist():
                pixels = self.stored(place)
                file.write(pixels)
                shapes.append(pixels.shape)
                ends.append(ends[-1] + pixels.size)
        self._shapes, self._starts = shapes, ends
        self._pixels = np.memmap(path, np.uint8, "r")

    def stored(self, place: int) -> np.ndarray:
        """The pixels of a frame that the map holds, uint8 [h, w, 3]."""
        return self.square(self.decode(place))

    def frames(self, places: list[int]) -> Iterator[np.ndarray]:
        return map(self.mapped, places)

    def mapped(self, place: int) -> np.ndarray:
        row = self._rows[place]
        return self._pixels[self._starts[row] : self._starts[row + 1]].reshape(self._shapes[row])

    def set_bytes(self) -> int:
        return sum(int(np.prod(self._shapes[row])) for row in self._rows)


class RawStored(RawSquares):
    """Pixels at the size that the JPEGs have, in a memory map: no decoding, but the resize."""

    name = "raw pixels at the stored size in a memory map"
    timed = 64
    resize = staticmethod(averaged)

    def stored(self, place: int) -> np.ndarray:
        record = self._records[place]
        return libjpeg.decode(self.jpeg(place), int(record["height"]), int(record["width"]), 1)

    def frames(self, places: list[int]) -> Iterator[np.ndarray]:
        return (self.square(self.mapped(place)) for place in places)
