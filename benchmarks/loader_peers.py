"""Loaders people use today, giving the same batches: uint8 [B, T, 3, S, S], a view of channels-last memory.

Each is an iterator over one epoch of a fresh loader. ``pil``, ``opencv`` and ``dali`` draw windows at random and decode
T frames for each; ``webdataset`` decodes each frame once, clip by clip, with a shuffle buffer.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cltt import ShardDataset, WindowIndex

S = 224
SHUFFLE_WINDOWS = 500


def square(image: np.ndarray) -> np.ndarray:
    """The central square at S x S."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return cv2.resize(image[top : top + side, left : left + side], (S, S), interpolation=cv2.INTER_LINEAR)


def with_pil(path: str) -> np.ndarray:
    """As torchvision's Resize and CenterCrop on a PIL image."""
    with Image.open(path) as image:
        width, height = image.size
        scale = S / min(width, height)
        image = image.convert("RGB").resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - S) // 2, (image.height - S) // 2
        return np.asarray(image.crop((left, top, left + S, top + S)))


def with_opencv(path: str) -> np.ndarray:
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    assert image is not None
    return cv2.cvtColor(square(image), cv2.COLOR_BGR2RGB)


class WindowFiles(Dataset[torch.Tensor]):
    """Window i: T files, each opened and decoded -> uint8 [T, S, S, 3]."""

    def __init__(self, files: list[str], index: WindowIndex, how: str) -> None:
        self._files, self._index, self._load = files, index, {"pil": with_pil, "opencv": with_opencv}[how]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([self._load(self._files[frame]) for frame in self._index.frames(i).tolist()]))


def file_batches(files: list[str], index: WindowIndex, batch: int, workers: int, how: str) -> Iterator[torch.Tensor]:
    """PIL or OpenCV in the workers of a shuffling DataLoader."""
    dataset = WindowFiles(files, index, how)
    for frames in DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, worker_init_fn=_one_thread, drop_last=True
    ):
        yield frames.permute(0, 1, 4, 2, 3)


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)


def dali_batches(files: list[str], index: WindowIndex, batch: int, threads: int) -> Iterator[torch.Tensor]:
    """DALI's file reader over the frames of all windows, windows in random order."""
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline

    windows = index.frames(np.random.default_rng().permutation(len(index))).reshape(-1)
    pipe = Pipeline(batch * index.window_size, threads, None, exec_dynamic=True)
    with pipe:
        jpegs, _ = fn.readers.file(files=[files[frame] for frame in windows.tolist()], prefetch_queue_depth=2)
        frames = fn.decoders.image(jpegs, device="cpu", adjust_orientation=False)
        small = fn.resize(frames, resize_shorter=S, antialias=False)
        pipe.set_outputs(fn.crop(small, crop=(S, S)))
    pipe.build()
    for _ in range(len(index) // batch):
        (output,) = pipe.run()
        frames = torch.from_dlpack(output.as_tensor())
        yield frames.view(batch, index.window_size, S, S, 3).permute(0, 1, 4, 2, 3)


class Streamed(IterableDataset[torch.Tensor]):
    """webdataset over the shards: frames in order, each decoded once, windows from the last ``span`` frames."""

    def __init__(self, dataset: ShardDataset, index: WindowIndex, batch: int) -> None:
        self._shards = sorted(str(path) for path in Path(dataset.path).glob("*.tar"))
        self._settings, self._batch = index.settings, batch

    def __iter__(self) -> Iterator[torch.Tensor]:
        buffer: list[list[np.ndarray]] = []
        drawn: list[list[np.ndarray]] = []
        for window in self._windows():
            buffer.append(window)
            if len(buffer) > SHUFFLE_WINDOWS:
                drawn.append(self._pop(buffer))
            if len(drawn) == self._batch:
                yield torch.from_numpy(np.stack(drawn))
                drawn = []
        while buffer:
            drawn.append(self._pop(buffer))
            if len(drawn) == self._batch:
                yield torch.from_numpy(np.stack(drawn))
                drawn = []

    @staticmethod
    def _pop(buffer: list[list[np.ndarray]]) -> list[np.ndarray]:
        k = random.randrange(len(buffer))
        buffer[k], buffer[-1] = buffer[-1], buffer[k]
        return buffer.pop()

    def _windows(self) -> Iterator[list[np.ndarray]]:
        """Windows of the clips in order: lists of T frames uint8 [S, S, 3], which windows share."""
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

    @staticmethod
    def _decoded(slot: list[Any]) -> np.ndarray:
        if slot[1] is None:
            slot[1] = square(simplejpeg.decode_jpeg(slot[0], "RGB"))
        return slot[1]


def webdataset_batches(dataset: ShardDataset, index: WindowIndex, batch: int, workers: int) -> Iterator[torch.Tensor]:
    """webdataset in the workers of a DataLoader, each with its own shards and shuffle buffer."""
    streamed = Streamed(dataset, index, batch)
    for frames in DataLoader(streamed, batch_size=None, num_workers=workers, worker_init_fn=_one_thread):
        yield frames.permute(0, 1, 4, 2, 3)
