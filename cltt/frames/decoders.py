"""JPEGs into slots: libjpeg-turbo with OpenCV on the CPU, DALI's graph on a GPU.

Both cut first and resize then, on one sampling grid, so only pixels that are stored are resized; their pixels agree to
within 2/255 on average. On the CPU DALI's own resize takes three times as long, hence the twin.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from cltt.frames.decode_cpu import FrameDecoder, frame_size
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore, own_stream

log = logging.getLogger(__name__)


class Decoder(Protocol):
    """Decodes JPEGs into a store; called by several threads at once.

    Attributes:
        framing: of the frames it makes.
        device: where the store must lie.
        job_frames: how many frames to decode in one call, at most.
    """

    framing: Framing
    device: torch.device
    job_frames: int

    def decode(self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore) -> dict[int, str]:
        """Decode ``jpegs`` into ``slots`` of ``store``; returns {position in jpegs: why it cannot be decoded}."""


class CpuDecoder(FrameDecoder):
    """libjpeg-turbo and OpenCV into slots; any number of threads may call one decoder."""

    device = torch.device("cpu")
    job_frames = 32

    def decode(self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore) -> dict[int, str]:
        """As :meth:`Decoder.decode`."""
        failures = {}
        for position, (jpeg, slot) in enumerate(zip(jpegs, slots, strict=True)):
            try:
                store.sizes[slot] = self.decode_into(jpeg, store.host_row(slot))
            except Exception as error:  # a decoder may raise anything, MemoryError too; the frame is named and counted
                failures[position] = f"cannot be decoded ({str(error) or type(error).__name__})"
        return failures


class DaliDecoder:
    """DALI's decode graph: ``mixed`` on a GPU, the same graph on the CPU with ``device`` cpu (slow; for comparison).

    One bad JPEG fails DALI's whole batch. Then each is decoded on the CPU to find out which, and the good ones go
    through a new graph; if that fails as well, their pixels are those of the CPU decoder.
    """

    job_frames = 128
    _GRAPHS = 2

    def __init__(self, framing: Framing, device: torch.device, threads: int) -> None:
        from cltt.frames.dali_graphs import DecodeGraphs

        self.framing, self.device = framing, device
        device_id = (device.index or 0) if device.type == "cuda" else None
        self._graphs = DecodeGraphs(self._GRAPHS, self.job_frames, threads, device_id)
        self._cpu = CpuDecoder(framing)

    def decode(self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore) -> dict[int, str]:
        """As :meth:`Decoder.decode`; any number of JPEGs."""
        failures: dict[int, str] = {}
        for first in range(0, len(jpegs), self.job_frames):
            part = slice(first, first + self.job_frames)
            found = self._decode_part(jpegs[part], slots[part], store)
            failures |= {first + position: reason for position, reason in found.items()}
        return failures

    def _decode_part(self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore) -> dict[int, str]:
        try:
            self._run(jpegs, slots, store)
            return {}
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError):
            aside = FrameStore(len(jpegs), self.framing, torch.device("cpu"))
            failures = self._cpu.decode(jpegs, range(len(jpegs)), aside)
        good = [k for k in range(len(jpegs)) if k not in failures]
        try:
            if good:
                self._run([jpegs[k] for k in good], [slots[k] for k in good], store)
        except (RuntimeError, ValueError) as error:
            log.warning("DALI cannot decode %d frames that the CPU can: %s", len(good), str(error).split("\n")[0])
            self._write(store, [slots[k] for k in good], [aside.frame(k) for k in good])
        return failures

    def _run(self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore) -> None:
        shapes = [frame_size(jpeg) for jpeg in jpegs]
        boxes = np.array([self.framing.box(*shape) for shape in shapes])
        sizes = np.array([self.framing.stored_size(*shape) for shape in shapes])
        self._write(store, slots, self._graphs.decode(jpegs, boxes, sizes))

    def _write(self, store: FrameStore, slots: Sequence[int], frames: torch.Tensor | list[torch.Tensor]) -> None:
        """Copy frames [h, w, 3] into slots; when this returns the copy is done and ``frames`` may go."""
        with own_stream(self.device) as stream:
            if stream is not None and store.gathered is not None:
                stream.wait_event(store.gathered)
            if isinstance(frames, torch.Tensor):
                rows = torch.tensor(slots, device=store.device)
                store.rows()[:, : frames[0].numel()].index_copy_(0, rows, frames.flatten(1))
            else:
                for slot, frame in zip(slots, frames, strict=True):
                    store.row(slot)[: frame.numel()].copy_(frame.reshape(-1))
        for slot, frame in zip(slots, frames, strict=True):
            store.sizes[slot] = frame.shape[:2]


def best_decoder(framing: Framing, device: torch.device, threads: int) -> Decoder:
    """DALI on the GPU for batches wanted on CUDA where DALI is installed, else libjpeg-turbo and OpenCV on the CPU."""
    if device.type == "cuda" and dali_installed():
        return DaliDecoder(framing, device, threads)
    return CpuDecoder(framing)


def dali_installed() -> bool:
    """Whether DALI can be imported."""
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return False
    return True
