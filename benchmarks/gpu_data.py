"""Frames that the GPU benchmark draws for itself, and the bare decoders it compares with."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch

from cltt import EpochPlan, WindowIndex, build_shards

ASPECT = 4 / 3
BATCH = 256
BLOCKS = 4  # at least so many an epoch: with one, all decoding is over in the first seconds


def panorama(seed: int, height: int) -> np.ndarray:
    """A wide uint8 picture [2*height, 4*height, 3] with detail at all scales: JPEGs as large as a camera's."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((2 * height, 4 * height, 3), np.float32)
    for octave in range(2, 9):
        cells = rng.normal(size=(2**octave, 2 ** (octave + 1), 3)).astype(np.float32)
        picture += cv2.resize(cells, (4 * height, 2 * height), interpolation=cv2.INTER_CUBIC) / 1.6**octave
    return np.clip(127 + 110 * picture, 0, 255).astype(np.uint8)


def draw_clip(folder: Path, seed: int, frames: int, height: int) -> None:
    """Write one clip: a camera that pans slowly over a panorama."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, width = panorama(seed, height), round(height * ASPECT)
    for index in range(frames):
        x = round((picture.shape[1] - width) * (0.5 + 0.5 * np.sin(index / 50 + seed)))
        y = round((picture.shape[0] - height) * (0.5 + 0.5 * np.cos(index / 70 + seed)))
        view = np.ascontiguousarray(picture[y : y + height, x : x + width])
        _, data = cv2.imencode(".jpg", view, [cv2.IMWRITE_JPEG_QUALITY, 85])
        (folder / f"frame_{index:06d}.jpg").write_bytes(data.tobytes())


def clips(work: Path, height: int, quick: bool) -> Path:
    """Folder of drawn clips of the given number of lines; drawn on first use."""
    root = work / f"clips{height}"
    if not root.exists():
        count, frames = (6, 100) if quick else ((48, 900) if height == 256 else (8, 250))
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda k: draw_clip(root / f"clip_{k:03d}", k, frames, height), range(count)))
    return root


def shards(work: Path, height: int, quick: bool) -> Path:
    """Shards of :func:`clips`; built on first use."""
    out = work / f"shards{height}"
    if not out.exists():
        build_shards(clips(work, height, quick), out, verify="header")
    return out


def depth_of_blocks(index: WindowIndex, batch: int) -> int:
    """A depth at which an epoch has at least BLOCKS blocks."""
    longest = len(index) // batch // BLOCKS
    for depth in range(longest, 0, -1):
        if EpochPlan(index, batch, depth=depth).num_blocks >= BLOCKS:
            return depth
    raise ValueError(f"{len(index)} windows in batches of {batch} cannot be cut into {BLOCKS} blocks")


@lru_cache
def jpegs(work: Path, height: int, quick: bool) -> list[np.ndarray]:
    """JPEG bytes of up to 4,096 frames as uint8 arrays."""
    paths = sorted(clips(work, height, quick).rglob("*.jpg"))[:4096]
    return [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]


def dali_frames_per_second(
    data: list[np.ndarray], device: torch.device, load: float, threads: int, fancy: bool = True
) -> float:
    """Frames/s of a DALI pipeline that only decodes ``data`` (one pass after one warm-up pass of a few batches).

    ``fancy``: with the chroma upsampling of the CPU decoder, as the loader has it.
    """
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali import types as dali_types

    gpu = device.type == "cuda"
    batches = [data[i : i + BATCH] for i in range(0, len(data), BATCH)]
    batches = [batch for batch in batches if len(batch) == len(batches[0])]

    @pipeline_def(batch_size=len(batches[0]), num_threads=threads, device_id=0 if gpu else None, prefetch_queue_depth=2)
    def decode_only():  # type: ignore[no-untyped-def]
        given = {"batch": True, "dtype": dali_types.UINT8, "ndim": 1}
        encoded = fn.external_source(source=lambda k: batches[k % len(batches)], **given)
        options = {"hw_decoder_load": load, "jpeg_fancy_upsampling": fancy} if gpu else {}
        device_name = "mixed" if gpu else "cpu"
        return fn.decoders.image(
            encoded, device=device_name, output_type=dali_types.RGB, adjust_orientation=False, **options
        )

    pipe = decode_only()
    pipe.build()
    rounds = max(len(batches), 4)
    for _ in range(3):
        pipe.run()
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(rounds):
        pipe.run()
    _synchronize(device)
    return rounds * len(batches[0]) / (time.perf_counter() - start)


def torchvision_frames_per_second(data: list[np.ndarray], device: torch.device) -> float:
    """Frames/s of ``torchvision.io.decode_jpeg`` on lists of encoded frames. ImportError without torchvision."""
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.from_numpy(frame.copy()) for frame in data]
    groups = [tensors[i : i + BATCH] for i in range(0, len(tensors), BATCH)]
    decode_jpeg(groups[0], mode=ImageReadMode.RGB, device=device)
    _synchronize(device)
    start = time.perf_counter()
    for group in groups:
        decode_jpeg(group, mode=ImageReadMode.RGB, device=device)
    _synchronize(device)
    return len(tensors) / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
