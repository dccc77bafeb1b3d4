"""Decoding JPEGs into slots: libjpeg-turbo with OpenCV on the CPU, DALI on a GPU.

A slot holds one frame of the frame memory. Both decoders crop before they resize, so they resize only pixels that are
kept. They use the same sampling grid: pixels agree to within 2/255 on average. The CPU has its own decoder because
DALI's resize takes three times as long there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from importlib.metadata import version

import cv2
import numpy as np
import torch

from cltt.errors import DataError
from cltt.frames.decode_cpu import FrameDecoder, frame_size
from cltt.frames.filters import quick_kernels
from cltt.frames.gather import on_device
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore, own_stream
from cltt.machine.gpus import hardware_jpeg_engines
from cltt.region import Box
from cltt.source import libjpeg

log = logging.getLogger(__name__)
_LITTLE_MEMORY = 512 << 20  # bytes; what a DALI pipeline ("graph") for 128 frames may need
LookAt = Sequence[Box | None]  # if the region is taken from boxes: the box of each frame, None for a frame without


class CpuDecoder(FrameDecoder):
    """Decodes with libjpeg-turbo and OpenCV; any number of threads may call one decoder.

    Attributes:
        framing: which part of a frame is stored, and at what size.
        device: the device of the store.
        job_frames: the best number of frames for one call; any number works.
        identity: libraries and versions; with equal framing and identity, decoders give equal pixels, unless DALI
            fails.
    """

    device = torch.device("cpu")
    job_frames = 32
    identity = f"CPU, simplejpeg {version('simplejpeg')}, OpenCV {cv2.__version__}"

    def decode(
        self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore, look_at: LookAt | None = None
    ) -> dict[int, str]:
        """Decode ``jpegs`` into ``slots`` of ``store``; returns {position of a bad JPEG: reason}."""
        failures = {}
        with quick_kernels:  # OpenCV resizes with Intel's kernels inside
            for position, (jpeg, slot) in enumerate(zip(jpegs, slots, strict=True)):
                try:
                    box = look_at[position] if look_at is not None else None
                    store.sizes[slot] = self.decode_into(jpeg, store.host_row(slot), box)
                except Exception as error:  # even MemoryError: the caller names and counts the frame
                    failures[position] = f"cannot be decoded ({str(error) or type(error).__name__})"
        return failures


class DaliDecoder:
    """Decodes with DALI on a GPU (DALI's device "mixed") or, with ``device`` cpu, on the CPU (slow, to compare).

    One bad JPEG makes DALI's whole call fail. The CPU then decodes each JPEG to find the bad ones, and the good ones go
    through another graph. If that fails too, the CPU's pixels are stored, and DALI is tried on a generated JPEG. If it
    decodes that, it is used further on. If not, DALI does not work on this machine (a library or driver is missing, for
    example): one warning says so, and the CPU decodes all further frames. A JPEG without an end marker in its last 1024
    bytes is never given to DALI: if it is cut short, it is a bad frame; if other data follow its end, it gets the CPU's
    pixels. Attributes as those of :class:`CpuDecoder`; any number of threads may call one decoder, too.

    Raises DataError if DALI finds no memory on the GPU.
    """

    job_frames = 128
    _GRAPHS = 2

    def __init__(self, framing: Framing, device: torch.device, threads: int) -> None:
        import nvidia.dali

        from cltt.frames.gpu.dali_graphs import DecodeGraph, DecodeGraphs

        self.framing, self.device = framing, device
        on_gpu = device.type == "cuda"
        hardware = on_gpu and bool(hardware_jpeg_engines())
        self.identity = f"DALI {nvidia.dali.__version__} on {device.type}, hardware {hardware}"
        device_id = (device.index or 0) if on_gpu else None
        make = partial(DecodeGraph, self.job_frames, threads, device_id, hardware, framing)
        self._graphs = DecodeGraphs(self._GRAPHS, make)
        self._cpu = CpuDecoder(framing)
        self._works = True
        # A cached method would keep this decoder alive.
        self._geometry = lru_cache(maxsize=1024)(partial(_geometry, framing))

    def decode(
        self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore, look_at: LookAt | None = None
    ) -> dict[int, str]:
        """As :meth:`CpuDecoder.decode`."""
        failures: dict[int, str] = {}
        look_at = look_at or [None] * len(jpegs)
        # A new thread's device is GPU 0 until it is set, and using that makes a CUDA context of half a gigabyte there.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            for first in range(0, len(jpegs), self.job_frames):
                part = slice(first, first + self.job_frames)
                found = self._decode_part(jpegs[part], slots[part], store, look_at[part])
                failures |= {first + position: reason for position, reason in found.items()}
        return failures

    def _decode_part(
        self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore, look_at: LookAt
    ) -> dict[int, str]:
        """At most ``job_frames`` JPEGs: all by DALI or, if that fails or one has no end, sorted by the CPU first."""
        # A JPEG cut short makes the hardware decoder hand the whole job to the CUDA decoder, whose pixels differ.
        all_end = all(map(_has_end, jpegs))
        if self._works and all_end and self._run_or_say_why(jpegs, slots, store, look_at) is None:
            return {}
        on_cpu = FrameStore(len(jpegs), self.framing, torch.device("cpu"))
        failures = self._cpu.decode(jpegs, range(len(jpegs)), on_cpu, look_at)
        without_end = [k for k, jpeg in enumerate(jpegs) if k not in failures and not _has_end(jpeg)]
        self._write(store, [slots[k] for k in without_end], [on_cpu.frame(k) for k in without_end])
        for_dali = [k for k in range(len(jpegs)) if k not in failures and k not in without_end]
        dali_slots = [slots[k] for k in for_dali]
        if not for_dali:
            return failures
        if self._works:
            boxes = [look_at[k] for k in for_dali]
            reason = self._run_or_say_why([jpegs[k] for k in for_dali], dali_slots, store, boxes)
            if reason is None:
                return failures
            self._note_failure(reason, len(for_dali))
        self._write(store, dali_slots, [on_cpu.frame(k) for k in for_dali])
        return failures

    def _run_or_say_why(
        self, jpegs: Sequence[bytes], slots: Sequence[int], store: FrameStore, look_at: LookAt
    ) -> str | None:
        """Decode into slots with DALI; returns None, or why DALI cannot."""
        try:
            self._write(store, slots, self._graphs.decode(jpegs, *self._parts(jpegs, look_at)))
        except (RuntimeError, ValueError, OSError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if _is_out_of_memory(str(error)):
                raise _no_memory(_cause(error)) from error
            return _cause(error)
        return None

    def _note_failure(self, reason: str, frames: int) -> None:
        """Warn that DALI failed on good frames; stop using it if it fails on a test JPEG, too.

        DataError if the GPU has little free memory: DALI reports nvJPEG's lack of memory as a bad frame.
        """
        if self.device.type == "cuda" and torch.cuda.mem_get_info(self.device)[0] < _LITTLE_MEMORY:
            raise _no_memory(reason)
        why = self.why_it_fails()
        if not why:
            log.warning("DALI failed on a job of %d frames, which the CPU decoded: %s", frames, reason)
        elif self._works:
            self._works = False
            log.warning(
                "DALI does not decode here (%s); from now on frames are decoded on the CPU, which is slower and "
                "differs by less than 2/255 on average; cltt doctor says what is missing",
                why,
            )

    def why_it_fails(self) -> str:
        """DALI's error message for a generated test JPEG; empty if DALI decodes it."""
        probe = libjpeg.encode(np.full((64, 64, 3), 128, np.uint8))
        try:
            self._graphs.decode([probe], *self._parts([probe], [None]))
        except (RuntimeError, ValueError, OSError) as error:
            return _cause(error) or type(error).__name__
        return ""

    def _parts(self, jpegs: Sequence[bytes], look_at: LookAt) -> tuple[np.ndarray, ...]:
        """What :func:`_geometry` returns for each JPEG, as int64 [n, 4], [n, 2] and [n, 4]."""
        numbers = np.array([self._geometry(*frame_size(jpeg), box) for jpeg, box in zip(jpegs, look_at, strict=True)])
        return numbers[:, :4], numbers[:, 4:6], numbers[:, 6:]

    def _write(self, store: FrameStore, slots: Sequence[int], frames: torch.Tensor | list[torch.Tensor]) -> None:
        """Copy frames [h, w, 3] into slots; ``frames`` may be freed when this returns."""
        if not len(frames):
            return
        where = np.asarray(slots)
        with own_stream(self.device) as stream:
            store.wait_writable(where, stream)
            if isinstance(frames, torch.Tensor) and _may_write_together(rows := store.rows()[:, : frames[0].numel()]):
                rows.index_copy_(0, on_device(where, store.device), frames.flatten(1))
            else:
                for slot, frame in zip(slots, frames, strict=True):
                    store.row(slot)[: frame.numel()].copy_(frame.reshape(-1))
        store.sizes[where] = frames.shape[1:3] if isinstance(frames, torch.Tensor) else [f.shape[:2] for f in frames]


Decoder = CpuDecoder | DaliDecoder


def _may_write_together(rows: torch.Tensor) -> bool:
    """Whether several threads may ``index_copy_`` into ``rows`` [slots, n] at once.

    With deterministic algorithms, torch writes into a copy of a tensor that is not contiguous, and copies all of it
    back. Each thread would undo what others wrote meanwhile.
    """
    return rows.is_contiguous() or not torch.are_deterministic_algorithms_enabled()


def _geometry(framing: Framing, height: int, width: int, look_at: Box | None) -> tuple[int, ...]:
    """What to store of a JPEG (4 numbers), at what size (2), and what stays clear (4).

    The last is the part of the stored frame that the region's effect, such as blur, does not change; zeros,
    which are not used, if there is no such effect.
    """
    clear = framing.clear(height, width, look_at) or (0, 0, 0, 0)
    return *framing.box(height, width, look_at), *framing.stored_size(height, width), *clear


def _has_end(jpeg: bytes) -> bool:
    """Whether the end marker is in the last 1024 bytes; if not, the JPEG is cut short, or other data follow its end."""
    return b"\xff\xd9" in jpeg[-1024:]


def _no_memory(reason: str) -> DataError:
    return DataError(
        "the GPU has no memory left to decode frames with DALI; leave it some with a smaller --cache-gb or "
        f"--batch-size ({reason})"
    )


def _is_out_of_memory(message: str) -> bool:
    return any(words in message.lower() for words in ("out of memory", "cudaerrormemoryallocation", "bad_alloc"))


def _cause(error: BaseException) -> str:
    """DALI's error message, without the operator's name before it and the stack after it."""
    return str(error).split("encountered:")[-1].strip().split("\n")[0]


def best_decoder(framing: Framing, device: torch.device, threads: int) -> Decoder:
    """DaliDecoder if ``device`` is a GPU and DALI is installed, else CpuDecoder."""
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
