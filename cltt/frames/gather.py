"""Stored frames to a normalised batch on a GPU in one pass: gather slots, normalise, convert and lay out.

Legend: S image_size; n frames. What is read is one byte a number and what is written is two or four; three passes of
plain torch move six times as much. :func:`gather_plain` is the twin that the kernel is held to, to the last bit, and
what runs where Triton is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cltt.machine.triton_runs import why_triton_fails

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BatchFormat:
    """How the numbers of a batch are made and lie.

    Attributes:
        dtype: float32, bfloat16 or float16 (normalised), or uint8 (raw).
        channels_last: C innermost in memory; the shape is the same.
        normalise: of float types, see :func:`statistics`.
    """

    dtype: torch.dtype
    channels_last: bool
    normalise: str

    @property
    def order(self) -> torch.memory_format:
        """The memory order of a batch, as torch names it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def statistics(normalise: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted from bytes and what they are multiplied by then: float32 [3] each, on the CPU.

    ``imagenet``: mean 0 and deviation 1 on ImageNet's photographs; ``none``: 0..255 to 0..1.
    """
    if normalise == "none":
        return torch.zeros(3), torch.full((3,), 1 / 255)
    return torch.tensor(IMAGENET_MEAN) * 255, 1 / (torch.tensor(IMAGENET_STD) * 255)


def gather(rows: torch.Tensor, slots: torch.Tensor, image_size: int, wanted: BatchFormat) -> torch.Tensor:
    """Frames in slots -> a batch, on the device of ``rows``; nothing waits for the device.

    Args:
        rows: uint8 [slots, at least S*S*3], contiguous: a frame, R, G and B of a pixel side by side, at the start of
            each row.
        slots: int64 [n], on the device of ``rows``.
        image_size: S.
        wanted: how the numbers are made and lie.

    Returns:
        [n, 3, S, S]; floats are computed in float32.
    """
    fused = rows.device.type == "cuda" and wanted.dtype != torch.uint8  # bytes are only moved
    if fused and not why_triton_fails():
        from cltt.frames.gpu.gather_kernel import launch

        return launch(rows, slots, image_size, wanted)
    return gather_plain(rows, slots, image_size, wanted)


def gather_plain(rows: torch.Tensor, slots: torch.Tensor, image_size: int, wanted: BatchFormat) -> torch.Tensor:
    """:func:`gather` in plain torch, pass by pass."""
    bytes_ = rows[:, : image_size * image_size * 3].index_select(0, slots)
    frames = bytes_.view(-1, image_size, image_size, 3).permute(0, 3, 1, 2)
    if wanted.dtype != torch.uint8:
        offset, scale = (values.to(rows.device).view(3, 1, 1) for values in statistics(wanted.normalise))
        frames = ((frames - offset) * scale).to(wanted.dtype)
    return frames.contiguous(memory_format=wanted.order)


def on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """``values`` as a tensor there; to a GPU by pinned memory, so that the host does not wait for the work queued."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
