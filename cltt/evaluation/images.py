"""Labelled images: where they come from, and batches of them as the network sees them."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch

from cltt.errors import DataError, InvalidImage
from cltt.files.retry import retry
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.shards.dataset import ShardDataset
from cltt.source import image, jpeg, pixels, scan
from cltt.visualize.views import clip_name

READ_TOGETHER = 16
SUFFIXES = (*image.IMAGE_EXTENSIONS, b".ppm", b".pgm")


class Places(NamedTuple):
    """Where images come from, one value an image.

    Attributes:
        path: the file's path relative to the data (of an archive: its name and the image's number).
        clip: name of the clip it is a frame of; an image by itself is a clip of its own.
        frame: int64 [n], its number in the clip.
        time: float64 [n], seconds from the clip's first frame; NaN where the source has no times.
    """

    path: list[str]
    clip: list[str]
    frame: np.ndarray
    time: np.ndarray


class Source(Protocol):
    """Where images are read from, by the ids that their :class:`Images` hold."""

    def read(self, ids: np.ndarray, decoder: FrameDecoder) -> Sequence[np.ndarray]:
        """RGB uint8 [S, S, 3] each, framed by the decoder."""

    def places(self, ids: np.ndarray) -> Places: ...

    def checksums(self, ids: np.ndarray) -> np.ndarray:
        """Length and CRC-32 of each image's bytes, as :func:`checksum`, uint64 [n]; 0 where there are no such bytes."""


@dataclass(frozen=True)
class Images:
    """Images with labels.

    Attributes:
        ids: int64 [n], what ``source`` is asked for.
        labels: int64 [n], 0..classes-1; -1 where the data has no labels at all.
        groups: int64 [n]; images of one group (a clip, a session, an object) go into one part together.
        source: where they are read from.
    """

    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    source: Source

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray | slice) -> Images:
        """Those in ``rows``: numbers, a mask or a slice."""
        return replace(self, ids=self.ids[rows], labels=self.labels[rows], groups=self.groups[rows])

    def batch(self, start: int, stop: int, image_size: int, pool: Executor | None = None) -> torch.Tensor:
        """Images ``start`` to ``stop``, framed as in training -> uint8 [stop - start, 3, S, S], C innermost.

        Read and decoded by the threads of ``pool``, or by this one.
        """
        ids, decoder = self.ids[start:stop], _decoder(image_size)
        pieces = np.split(ids, range(READ_TOGETHER, len(ids), READ_TOGETHER))
        read = (pool.map if pool else map)(lambda piece: self.source.read(piece, decoder), pieces)
        batch = np.stack([picture for pictures in read for picture in pictures])
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def pictures(self, rows: np.ndarray, side: int) -> np.ndarray:
        """Pixels of the images ``rows`` [m] -> uint8 [m, side, side, 3]."""
        return self.take(rows).batch(0, len(rows), side).permute(0, 2, 3, 1).numpy()


@cache
def _decoder(image_size: int) -> FrameDecoder:
    return FrameDecoder(Framing(image_size=image_size))


def joined(parts: Sequence[Images]) -> Images:
    """All images of ``parts``, which have one source."""
    ids, labels, groups = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "labels", "groups")
    )
    return Images(ids, labels, groups, parts[0].source)


def image_files(root: Path) -> tuple[list[str], list[str]]:
    """(paths of the image files at any depth, relative to ``root``, in natural order; folders left out, with reasons).

    Folders behind links are followed once. Hidden and system files and folders are left out as in a build.
    """
    with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
        found = scan.scan_folders(os.fsencode(root), pool)
    paths = []
    for key in found.keys:
        with os.scandir(os.path.join(os.fsencode(root), key)) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES) and not entry.is_dir()]
        paths += [scan.join_key(key, name) for name in names if not name.startswith(b".")]
    left_out = [f"{os.fsdecode(path)}: {reason}" for path, reason in found.skipped]
    return [os.fsdecode(path) for path in sorted(paths, key=scan.path_order)], left_out


class FileSource:
    """Image files below ``root``; ids count ``paths``, which are relative to it.

    ``clips``: the clip of each file by a rule of the user's; without, each file is a clip of its own.
    """

    def __init__(self, root: Path, paths: Sequence[str], clips: Sequence[str] | None = None) -> None:
        self.root = root
        self.paths = paths
        self.clips = clips
        self._frames = np.zeros(len(paths), np.int64) if clips is None else _numbers_within(clips)

    def read(self, ids: np.ndarray, decoder: FrameDecoder) -> list[np.ndarray]:
        return [decode(_read(self.root / self.paths[i]), str(self.root / self.paths[i]), decoder) for i in ids]

    def places(self, ids: np.ndarray) -> Places:
        paths = [self.paths[i] for i in ids]
        clips = paths if self.clips is None else [self.clips[i] for i in ids]
        return Places(paths, clips, self._frames[ids], np.full(len(ids), np.nan))

    def checksums(self, ids: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(scan.SCAN_THREADS) as pool:
            found = pool.map(lambda i: _checksum_of_file(self.root / self.paths[i]), ids)
            return np.fromiter(found, np.uint64, len(ids))


def _numbers_within(clips: Sequence[str]) -> np.ndarray:
    """0, 1, 2 ... for the first, second, third ... of each clip."""
    seen: dict[str, int] = {}
    numbers = np.empty(len(clips), np.int64)
    for place, clip in enumerate(clips):
        numbers[place] = seen.get(clip, 0)
        seen[clip] = numbers[place] + 1
    return numbers


class ArraySource:
    """Images in memory, uint8 [n, h, w, 3]; ids count them."""

    def __init__(self, name: str, pictures: np.ndarray) -> None:
        self.name = name
        self.pictures = pictures

    def read(self, ids: np.ndarray, decoder: FrameDecoder) -> Sequence[np.ndarray]:
        size = decoder.framing.image_size
        if self.pictures.shape[1:3] == (size, size):
            return self.pictures[ids]
        return [decoder.fit(picture) for picture in self.pictures[ids]]

    def places(self, ids: np.ndarray) -> Places:
        paths = [f"{self.name}/{i}" for i in ids]
        return Places(paths, paths, np.zeros(len(ids), np.int64), np.full(len(ids), np.nan))

    def checksums(self, ids: np.ndarray) -> np.ndarray:
        return np.zeros(len(ids), np.uint64)


class ShardSource:
    """Frames of shards, by their dataset-wide ids."""

    def __init__(self, dataset: ShardDataset) -> None:
        self.dataset = dataset

    def read(self, ids: np.ndarray, decoder: FrameDecoder) -> list[np.ndarray]:
        return [decode(data, f"frame {i}", decoder) for i, data in zip(ids, self.dataset.read(ids), strict=True)]

    def places(self, ids: np.ndarray) -> Places:
        clips = self.dataset.clip_of(ids)
        names = {clip: clip_name(self.dataset, clip) for clip in np.unique(clips).tolist()}
        paths = [self.dataset.frame_name(i) for i in ids.tolist()]
        frames = ids - self.dataset.clip_offsets[clips]
        times = self.dataset.frame_time(ids)
        nowhere = np.full(len(ids), np.nan)
        return Places(paths, [names[clip] for clip in clips.tolist()], frames, nowhere if times is None else times)

    def checksums(self, ids: np.ndarray) -> np.ndarray:
        return frame_checksums(self.dataset, ids)


def frame_checksums(dataset: ShardDataset, ids: np.ndarray) -> np.ndarray:
    """As :func:`checksum`, of the frames ``ids``, from the index alone -> uint64 [n]."""
    records = dataset.frame_records(ids)
    return records["size"].astype(np.uint64) << np.uint64(32) | records["crc"]


def checksum(data: bytes) -> int:
    """Length and CRC-32 in one number; equal numbers mean equal images, but for one pair in 4e9 of the same length."""
    return len(data) << 32 | zlib.crc32(data)


def _checksum_of_file(file: Path) -> int:
    try:
        return checksum(_read(file))
    except DataError:  # the evaluation says so when it needs the image
        return 0


def _read(file: Path) -> bytes:
    try:
        return retry(file, lambda: image.read_source(file))
    except InvalidImage as error:
        raise DataError(f"{file} cannot be decoded as an image ({error})") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error


def decode(data: bytes, name: str, decoder: FrameDecoder) -> np.ndarray:
    """A picture of any format, turned upright and framed; DataError, which says ``name``, if it cannot be decoded."""
    try:
        kind = "PPM" if data[:2] in (b"P5", b"P6") else image.image_kind(data[: image.HEAD])
        if kind == "JPEG":
            return _decode_jpeg(data, decoder)
        if kind:
            image.check_pixels(*pixels.size_of(kind, data), image.MAX_PIXELS)
            return decoder.fit(pixels.decode_other(kind, data))
        raise InvalidImage("not an image")
    except (InvalidImage, MemoryError, cv2.error) as error:
        why = error or "it takes more memory than there is"
        raise DataError(f"{name} cannot be decoded as an image ({why})") from error


def _decode_jpeg(data: bytes, decoder: FrameDecoder) -> np.ndarray:
    info = jpeg.jpeg_info(data)
    image.check_pixels(info.width, info.height, image.MAX_PIXELS)
    jpeg.check_scans(data, info)
    orientation = pixels.jpeg_orientation(data) if info.has_metadata else 1
    if orientation == 1:
        with contextlib.suppress(ValueError):  # OpenCV takes what libjpeg-turbo only warns of, and CMYK
            return decoder.frame(data)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if found is None:
        raise InvalidImage("invalid JPEG")
    return decoder.fit(pixels.turned(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), orientation))
