"""DALI's graphs: JPEG bytes to stored frames, and stored frames to augmented ones.

Both take their geometry and their random parameters from the host, so an output depends on the frame alone and not on
its place in DALI's stream. ``device_id=None`` runs the same graphs on the CPU, which is how they are tested without a
GPU.

Outputs are of the dynamic executor: they stay valid as long as someone holds them, and ``run`` returns when they are
ready.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.types
import torch
from nvidia.dali import Pipeline

from cltt.frames.augment import Augmentation

types: Any = nvidia.dali.types  # its stubs leave the enumerations out
Frames = Sequence[torch.Tensor]
# Of baseline JPEGs, the share given to the hardware decoder where the GPU has one (DALI's own default).
HARDWARE_SHARE = 0.65


class Graph:
    """One DALI pipeline fed by the host, with batches of up to ``batch_size``."""

    def __init__(self, batch_size: int, threads: int, device_id: int | None) -> None:
        # Nothing is prefetched: each run is given its data just before.
        self.pipe = Pipeline(batch_size, threads, device_id, prefetch_queue_depth=1, exec_dynamic=True)
        self.on_gpu = device_id is not None

    def run(self, **inputs: Any) -> Any:
        """Feed ``inputs``, lists of n arrays each -> DALI's list of n outputs."""
        for name, values in inputs.items():
            self.pipe.feed_input(name, values)
        (output,) = self.pipe.run()
        return output


class DecodeGraph(Graph):
    """JPEGs, the box stored of each and its size -> uint8 [h, w, 3] each."""

    def __init__(self, batch_size: int, threads: int, device_id: int | None) -> None:
        super().__init__(batch_size, threads, device_id)
        with self.pipe:
            jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1)
            start, end, size = (fn.external_source(name=n, dtype=types.FLOAT, ndim=1) for n in ("start", "end", "size"))
            frames = fn.decoders.image(
                jpegs,
                device="mixed" if self.on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                hw_decoder_load=HARDWARE_SHARE,
                jpeg_fancy_upsampling=True,  # else edges of strong colours differ from the CPU's by over 2/255
            )
            stored = fn.resize(frames, size=size, roi_start=start, roi_end=end, antialias=True)
            self.pipe.set_outputs(stored)
        self.pipe.build()

    def decode(self, jpegs: Sequence[bytes], boxes: np.ndarray, sizes: np.ndarray) -> list[torch.Tensor] | torch.Tensor:
        """Decode n JPEGs.

        Args:
            boxes: [n, 4] top, left, height, width of what is stored, in pixels of the JPEG.
            sizes: [n, 2] height and width at which it is stored.

        Returns:
            uint8 [n, h, w, 3] if all sizes are equal, else a list of uint8 [h, w, 3]; DALI's memory, not a copy.

        Raises:
            RuntimeError: a JPEG cannot be decoded; this graph must not be used again.
        """
        output = self.run(
            jpegs=[np.frombuffer(jpeg, np.uint8) for jpeg in jpegs],
            start=list(boxes[:, :2].astype(np.float32)),
            end=list((boxes[:, :2] + boxes[:, 2:]).astype(np.float32)),
            size=list(sizes.astype(np.float32)),
        )
        if (sizes == sizes[0]).all():
            return torch.from_dlpack(output.as_tensor())
        return [torch.from_dlpack(output[k]) for k in range(len(jpegs))]


class AugmentGraph(Graph):
    """Stored frames and drawn parameters -> uint8 [n, S, S, 3]."""

    def __init__(self, image_size: int, blur_window: int, batch_size: int, threads: int, device_id: int | None) -> None:
        super().__init__(batch_size, threads, device_id)
        device = "gpu" if self.on_gpu else "cpu"
        with self.pipe:
            frames = fn.external_source(name="frames", device=device, dtype=types.UINT8, ndim=3, layout="HWC")
            start, end, shift = (
                fn.external_source(name=n, dtype=types.FLOAT, ndim=1) for n in ("start", "end", "shift")
            )
            matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
            sigma = fn.external_source(name="sigma", dtype=types.FLOAT, ndim=0)
            # A box whose left edge is right of its right edge comes out mirrored.
            cropped: Any = fn.resize(frames, size=[image_size] * 2, roi_start=start, roi_end=end, antialias=True)
            coloured = fn.coord_transform(cropped, M=matrix, T=shift, dtype=types.UINT8)
            self.pipe.set_outputs(fn.gaussian_blur(coloured, window_size=blur_window, sigma=sigma))
        self.pipe.build()

    def augment(self, frames: Frames, drawn: Augmentation) -> torch.Tensor:
        """Apply ``drawn`` to n ``frames`` uint8 [h, w, 3] -> uint8 [n, S, S, 3], DALI's memory."""
        start, end = drawn.box[:, :2].astype(np.float32), (drawn.box[:, :2] + drawn.box[:, 2:]).astype(np.float32)
        start[drawn.flip, 1], end[drawn.flip, 1] = end[drawn.flip, 1], start[drawn.flip, 1]
        output = self.run(
            frames=list(frames) if self.on_gpu else [frame.numpy() for frame in frames],
            start=list(start),
            end=list(end),
            matrix=list(np.ascontiguousarray(drawn.colour[:, :, :3])),
            shift=list(np.ascontiguousarray(drawn.colour[:, :, 3])),
            # A deviation this small leaves one pixel of the kernel: no blur.
            sigma=list(np.where(drawn.sigma > 0, drawn.sigma, 1e-3).astype(np.float32)),
        )
        return torch.from_dlpack(output.as_tensor())


class DecodeGraphs:
    """A few decode graphs, so that one can parse headers while another one's pixels are computed.

    A graph that failed is thrown away (DALI says it is no longer valid) and a new one is built in its place.
    """

    def __init__(self, count: int, batch_size: int, threads: int, device_id: int | None) -> None:
        self._arguments = (batch_size, threads, device_id)
        self._idle: queue.SimpleQueue[DecodeGraph | None] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(None)

    def decode(self, jpegs: Sequence[bytes], boxes: np.ndarray, sizes: np.ndarray) -> list[torch.Tensor] | torch.Tensor:
        """As :meth:`DecodeGraph.decode`; waits for an idle graph."""
        graph = self._idle.get()
        try:
            graph = graph or DecodeGraph(*self._arguments)
            frames = graph.decode(jpegs, boxes, sizes)
        except BaseException:
            self._idle.put(None)
            raise
        self._idle.put(graph)
        return frames
