"""Loaders people use today, giving the same batches [B, T, 3, S, S], each at its best setting: one class per peer.

OpenCV, PIL and DALI draw windows at random, epoch after epoch, and decode T frames for each; webdataset decodes each
frame once, clip by clip, with a shuffle buffer. Frames at least twice as large as wanted are decoded at half their size
where the library can (libjpeg's DCT scaling): PIL by ``draft``, OpenCV by ``IMREAD_REDUCED_COLOR_2``, simplejpeg by
``min_factor``; DALI cannot. The peers without processes are in loader_pools.py.
"""

from __future__ import annotations

import importlib
import itertools
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from cltt import ShardDataset, WindowIndex
from cltt.frames.gather import IMAGENET_MEAN, IMAGENET_STD

S = 224
Batches = Generator[torch.Tensor, None, None]
SHUFFLE_WINDOWS = 500
_SCALE = (1 / (np.array(IMAGENET_STD) * 255)).astype(np.float32)
_OFFSET = (np.array(IMAGENET_MEAN) / np.array(IMAGENET_STD)).astype(np.float32)


@dataclass(frozen=True)
class Wanted:
    """What all loaders are asked for.

    Attributes:
        dataset: the shards.
        files: path of each frame's JPEG file.
        index: the windows.
        batch: windows per batch.
        workers: processes or threads.
        floats: float32, normalised, [B, T, 3, S, S] in memory; else uint8, a view of channels-last memory.
    """

    dataset: ShardDataset
    files: list[str]
    index: WindowIndex
    batch: int
    workers: int
    floats: bool

    @property
    def halve(self) -> bool:
        """The frames are at least twice as large as wanted."""
        record = self.dataset.frame_records([0])[0]
        return bool(min(record["width"], record["height"]) >= 2 * S)


class Peer(ABC):
    """A loader that gives ``wanted``.

    Attributes:
        name: in the table.
        needs: module that has to be importable.
        untimed, timed: batches before and while it is timed.
    """

    name = ""
    needs = ""
    untimed, timed = 8, 24

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted

    @classmethod
    def why_missing(cls) -> str:
        """Why this peer cannot run here; empty if it can."""
        if not cls.needs:
            return ""
        try:
            importlib.import_module(cls.needs)
        except Exception as error:  # a library that it needs in turn may raise anything
            return f"importing {cls.needs} fails: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return ""

    @abstractmethod
    def batches(self) -> Batches:
        """Batches without end, of new workers; closing the iterator ends them."""

    def set_bytes(self) -> int:
        """Bytes of the set in the form that this loader reads."""
        dataset = self.wanted.dataset
        return int(dataset.frame_records(range(dataset.num_frames))["size"].sum())


def drawn_windows(index: WindowIndex, batch: int) -> Iterator[np.ndarray]:
    """Ids of the windows of each batch, int64 [B]: epoch after epoch, each in an order of its own."""
    random = np.random.default_rng()
    while True:
        order = random.permutation(len(index))
        yield from order[: len(order) // batch * batch].reshape(-1, batch)


def square(image: np.ndarray) -> np.ndarray:
    """The central square at S x S."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return cv2.resize(image[top : top + side, left : left + side], (S, S), interpolation=cv2.INTER_LINEAR)


def normalise(frame: np.ndarray, out: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 3] -> ``out`` float32 [3, S, S]."""
    for channel, plane in enumerate(cv2.split(frame)):
        np.multiply(plane, _SCALE[channel], out=out[channel])
        out[channel] -= _OFFSET[channel]
    return out


def with_pil(path: str, halve: bool) -> np.ndarray:
    """As torchvision's Resize and CenterCrop on a PIL image."""
    with Image.open(path) as image:
        width, height = image.size
        scale = S / min(width, height)
        size = round(width * scale), round(height * scale)
        if halve:
            image.draft("RGB", size)
        image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - S) // 2, (image.height - S) // 2
        return np.asarray(image.crop((left, top, left + S, top + S)))


def with_opencv(path: str, halve: bool) -> np.ndarray:
    image = cv2.imread(path, cv2.IMREAD_REDUCED_COLOR_2 if halve else cv2.IMREAD_COLOR)
    assert image is not None
    return cv2.cvtColor(square(image), cv2.COLOR_BGR2RGB)


class WindowFiles(Dataset[torch.Tensor]):
    """Window i: T files, each opened and decoded -> [T, 3, S, S] float32, or uint8 [T, S, S, 3]."""

    def __init__(self, wanted: Wanted, load: Callable[[str], np.ndarray]) -> None:
        self._wanted, self._load = wanted, load

    def __len__(self) -> int:
        return len(self._wanted.index)

    def __getitem__(self, i: int) -> torch.Tensor:
        frames = [self._load(self._wanted.files[frame]) for frame in self._wanted.index.frames(i).tolist()]
        if not self._wanted.floats:
            return torch.from_numpy(np.stack(frames))
        window = np.empty((len(frames), 3, S, S), np.float32)
        for frame, out in zip(frames, window, strict=True):
            normalise(frame, out)
        return torch.from_numpy(window)


class OpenCv(Peer):
    """OpenCV in the workers of a shuffling DataLoader."""

    name = "OpenCV + DataLoader"
    load = staticmethod(with_opencv)

    def batches(self) -> Batches:
        wanted = self.wanted
        dataset = WindowFiles(wanted, partial(self.load, halve=wanted.halve))
        sampler = RandomSampler(dataset, num_samples=1 << 30)
        options: dict[str, Any] = {"num_workers": wanted.workers, "worker_init_fn": _quickest}
        for frames in DataLoader(dataset, wanted.batch, sampler=sampler, **options):
            yield frames if wanted.floats else frames.permute(0, 1, 4, 2, 3)


class Pil(OpenCv):
    """PIL in the workers of a shuffling DataLoader."""

    name = "PIL + DataLoader"
    load = staticmethod(with_pil)
    timed = 16


def _quickest(_: int) -> None:
    cv2.setNumThreads(0)
    cv2.ipp.setUseIPP_NotExact(True)  # as our own loader resizes


class Dali(Peer):
    """DALI's file reader over the frames of all windows, windows in random order."""

    name = "DALI file reader"
    needs = "nvidia.dali"

    def batches(self) -> Batches:
        import nvidia.dali.fn as fn
        from nvidia.dali import Pipeline
        from nvidia.dali import types as dali_types

        wanted, index = self.wanted, self.wanted.index
        drawn = itertools.islice(drawn_windows(index, wanted.batch), 2 * (self.untimed + self.timed))
        files = [wanted.files[frame] for ids in drawn for frame in index.frames(ids).reshape(-1).tolist()]
        pipe = Pipeline(wanted.batch * index.window_size, wanted.workers, None, exec_dynamic=True)
        with pipe:
            jpegs, _ = fn.readers.file(files=files, prefetch_queue_depth=2)
            frames = fn.decoders.image(jpegs, device="cpu", adjust_orientation=False)
            small = fn.resize(frames, resize_shorter=S, antialias=False)
            if wanted.floats:
                mean, std = ([255 * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
                made = {"mean": mean, "std": std, "dtype": dali_types.FLOAT}  # type: ignore[attr-defined]
                pipe.set_outputs(fn.crop_mirror_normalize(small, crop=(S, S), **made))
            else:
                pipe.set_outputs(fn.crop(small, crop=(S, S)))
        pipe.build()
        while True:
            (output,) = pipe.run()
            made = torch.from_dlpack(output.as_tensor())
            shaped = made.view(wanted.batch, index.window_size, *made.shape[1:])
            yield shaped if wanted.floats else shaped.permute(0, 1, 4, 2, 3)


class Streamed(IterableDataset[torch.Tensor]):
    """webdataset over the shards: frames in order, each decoded once, windows from the last ``span`` frames."""

    def __init__(self, wanted: Wanted) -> None:
        self._shards = sorted(str(path) for path in Path(wanted.dataset.path).glob("*.tar"))
        self._settings, self._wanted = wanted.index.settings, wanted

    def __iter__(self) -> Iterator[torch.Tensor]:
        buffer: list[list[np.ndarray]] = []
        drawn: list[list[np.ndarray]] = []
        for window in self._windows():
            buffer.append(window)
            if len(buffer) > SHUFFLE_WINDOWS:
                drawn.append(self._pop(buffer))
            if len(drawn) == self._wanted.batch:
                yield torch.from_numpy(np.stack(drawn))
                drawn = []
        while buffer:
            drawn.append(self._pop(buffer))
            if len(drawn) == self._wanted.batch:
                yield torch.from_numpy(np.stack(drawn))
                drawn = []

    @staticmethod
    def _pop(buffer: list[list[np.ndarray]]) -> list[np.ndarray]:
        k = random.randrange(len(buffer))
        buffer[k], buffer[-1] = buffer[-1], buffer[k]
        return buffer.pop()

    def _windows(self) -> Iterator[list[np.ndarray]]:
        """Windows of the clips in order: lists of T frames, which windows share."""
        import webdataset as wds

        s = self._settings
        clip, count = None, 0
        held: deque[Any] = deque(maxlen=s.span)
        # A frame that no window takes is not decoded.
        for sample in wds.WebDataset(self._shards, shardshuffle=False, nodesplitter=None):
            key = sample["__key__"].rsplit("/", 1)[0]
            if key != clip:
                clip, count = key, 0
                held.clear()
            held.append([sample["jpg"], None])
            count += 1
            start = count - s.span
            if start >= 0 and start % s.window_stride == 0:
                yield [self._decoded(held[k * s.frame_step]) for k in range(s.window_size)]

    def _decoded(self, slot: list[Any]) -> np.ndarray:
        if slot[1] is None:
            halved = {"min_factor": 2, "min_height": S, "min_width": S} if self._wanted.halve else {}
            frame = square(simplejpeg.decode_jpeg(slot[0], "RGB", **halved))
            slot[1] = normalise(frame, np.empty((3, S, S), np.float32)) if self._wanted.floats else frame
        return slot[1]


class WebDataset(Peer):
    """webdataset in DataLoader workers, each with its own shards and shuffle buffer (full from the first batch)."""

    name = "webdataset, clip by clip"
    needs = "webdataset"

    def batches(self) -> Batches:
        workers = self.wanted.workers
        streamed = Streamed(self.wanted)
        for frames in DataLoader(streamed, batch_size=None, num_workers=workers, worker_init_fn=_quickest):
            yield frames if self.wanted.floats else frames.permute(0, 1, 4, 2, 3)
