"""DALI's graphs: JPEG bytes to stored frames, and stored frames to augmented ones.

Both take their geometry and their random parameters from the host, so an output depends on the frame alone and not on
its place in DALI's stream. ``device_id=None`` runs the same graphs on the CPU, which is how they are tested without a
GPU.

Outputs are of the dynamic executor: they stay valid as long as someone holds them, and ``run`` returns when they are
ready.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import nvidia.dali
import nvidia.dali.fn as fn
import torch
from nvidia.dali import Pipeline, math
from nvidia.dali.tensors import TensorCPU

from cltt.frames.augment import LUMA, TO_GREY, Augmentation
from cltt.frames.geometry import Framing

dali_types: Any = nvidia.dali.types  # its stubs leave the enumerations out
Frames = Sequence[torch.Tensor]


class Graph:
    """One DALI pipeline fed by the host, with batches of up to ``batch_size``."""

    def __init__(self, batch_size: int, threads: int, device_id: int | None) -> None:
        # Nothing is prefetched: each run is given its data just before.
        self.pipe = Pipeline(batch_size, threads, device_id, prefetch_queue_depth=1, exec_dynamic=True)
        self.on_gpu = device_id is not None

    def run(self, **inputs: Any) -> Any:
        """Feed ``inputs``, n of each: a list of arrays, or one array whose first dimension is n -> DALI's n outputs.

        One array is one call into DALI; of a list each array is one, some 5 us of Python.
        """
        for name, values in inputs.items():
            self.pipe.feed_input(name, values, use_copy_kernel=self.on_gpu)
        (output,) = self.pipe.run()
        return output


class DecodeGraph(Graph):
    """JPEGs, the box stored of each and its size -> uint8 [h, w, 3] each.

    Frames are stored as ``framing`` says.

    ``hardware``: give every JPEG that it can take to the GPU's JPEG engine. All or none: its pixels differ a little
    from those of the CUDA decoder, and with a share between, which frames go to it depends on how batches were cut, so
    that a resumed run would see other pixels (https://github.com/NVIDIA/DALI/pull/2232).
    """

    def __init__(
        self,
        batch_size: int,
        threads: int,
        device_id: int | None,
        hardware: bool,
        framing: Framing,
    ) -> None:
        super().__init__(batch_size, threads, device_id)
        self.batch_size, self._marks_clear = batch_size, framing.region.changes_outside
        with self.pipe:
            jpegs = fn.external_source(name="jpegs", dtype=dali_types.UINT8, ndim=1)
            start, end, size = (
                fn.external_source(name=n, dtype=dali_types.FLOAT, ndim=1) for n in ("start", "end", "size")
            )
            frames = fn.decoders.image(
                jpegs,
                device="mixed" if self.on_gpu else "cpu",
                output_type=dali_types.RGB,
                adjust_orientation=False,
                hw_decoder_load=float(hardware),
                jpeg_fancy_upsampling=True,  # else edges of strong colours differ from the CPU's by over 2/255
            )
            stored = fn.resize(frames, size=size, roi_start=start, roi_end=end, antialias=True)
            self.pipe.set_outputs(_blurred_outside(stored, *framing.blur) if framing.blur else stored)
        self.pipe.build()

    def decode(
        self, jpegs: Sequence[bytes], boxes: np.ndarray, sizes: np.ndarray, clear: np.ndarray
    ) -> list[torch.Tensor] | torch.Tensor:
        """Decode n JPEGs.

        Args:
            boxes: [n, 4] top, left, height, width of what is stored, in pixels of the JPEG.
            sizes: [n, 2] height and width at which it is stored.
            clear: [n, 4] top, left, height, width of what is not blurred, in pixels of the stored frame.

        Returns:
            uint8 [n, h, w, 3] if all sizes are equal, else a list of uint8 [h, w, 3]; DALI's memory, not a copy.

        Raises:
            RuntimeError: a JPEG cannot be decoded; this graph must not be used again.
        """
        corners = boxes[:, :2]
        inside = {"corner": clear[:, :2].astype(np.float32), "extent": clear[:, 2:].astype(np.float32)}
        output = self.run(
            jpegs=[TensorCPU(jpeg, "") for jpeg in jpegs],  # what feed_input makes of an array, at half the cost
            start=corners.astype(np.float32),
            end=(corners + boxes[:, 2:]).astype(np.float32),
            size=sizes.astype(np.float32),
            **(inside if self._marks_clear else {}),
        )
        if (sizes == sizes[0]).all():
            return torch.from_dlpack(output.as_tensor())
        return [torch.from_dlpack(output[k]) for k in range(len(jpegs))]


def _blurred_outside(frames: Any, taps: int, sigma: float) -> Any:
    """``frames`` blurred but for a rectangle each, by the inputs ``corner`` and ``extent``.

    The blurred frame with nothing in the rectangle, and the clear one with nothing outside it, are added.
    """
    corner, extent = (fn.external_source(name=n, dtype=dali_types.FLOAT, ndim=1) for n in ("corner", "extent"))

    def without(pictures: Any) -> Any:
        return fn.erase(pictures, axis_names="HW", anchor=corner, shape=extent)

    return without(fn.gaussian_blur(frames, window_size=taps, sigma=sigma)) + (frames - without(frames))


class AugmentGraph(Graph):
    """Stored frames and drawn parameters -> uint8 [n, S, S, 3]; ``turns_hue``: where any parameters turn it."""

    def __init__(
        self,
        image_size: int,
        blur_window: int,
        turns_hue: bool,
        batch_size: int,
        threads: int,
        device_id: int | None,
    ) -> None:
        super().__init__(batch_size, threads, device_id)
        self._turns_hue = turns_hue
        device = "gpu" if self.on_gpu else "cpu"
        with self.pipe:
            frames = fn.external_source(name="frames", device=device, dtype=dali_types.UINT8, ndim=3, layout="HWC")
            start, end = (fn.external_source(name=n, dtype=dali_types.FLOAT, ndim=1) for n in ("start", "end"))
            matrix = fn.external_source(name="matrix", dtype=dali_types.FLOAT, ndim=2)
            of_mean = fn.external_source(name="of_mean", device=device, dtype=dali_types.FLOAT, ndim=1)
            sigma = fn.external_source(name="sigma", dtype=dali_types.FLOAT, ndim=0)
            # A box whose left edge is right of its right edge comes out mirrored.
            cropped: Any = fn.resize(frames, size=[image_size] * 2, roi_start=start, roi_end=end, antialias=True)
            luma = dali_types.Constant(np.asarray(LUMA, np.float32), device=device)
            mean = fn.reductions.sum(fn.reductions.mean(cropped, axes=[0, 1]) * luma, axes=[0])
            coloured = fn.cast(fn.coord_transform(cropped, M=matrix) + of_mean * mean, dtype=dali_types.UINT8)
            if turns_hue:
                coloured = _hue_turned(coloured, device)
            self.pipe.set_outputs(fn.gaussian_blur(coloured, window_size=blur_window, sigma=sigma))
        self.pipe.build()

    def augment(self, frames: Frames, drawn: Augmentation) -> torch.Tensor:
        """Apply ``drawn`` to n ``frames`` uint8 [h, w, 3] -> uint8 [n, S, S, 3], DALI's memory."""
        start, end = drawn.box[:, :2].astype(np.float32), (drawn.box[:, :2] + drawn.box[:, 2:]).astype(np.float32)
        start[drawn.flip, 1], end[drawn.flip, 1] = end[drawn.flip, 1], start[drawn.flip, 1]
        output = self.run(
            frames=list(frames) if self.on_gpu else [frame.numpy() for frame in frames],
            start=start,
            end=end,
            matrix=np.ascontiguousarray(drawn.colour[:, :, :3]),
            of_mean=np.ascontiguousarray(drawn.colour[:, :, 3]),
            # A deviation this small leaves one pixel of the kernel: no blur.
            sigma=np.where(drawn.sigma > 0, drawn.sigma, 1e-3).astype(np.float32),
            **(_turns(drawn) if self._turns_hue else {}),
        )
        return torch.from_dlpack(output.as_tensor())


def _hue_turned(frames: Any, device: str) -> Any:
    """Turn the hue of ``frames`` uint8 as :func:`cltt.frames.filters.turn_hue` does, by the inputs of :func:`_turns`.

    DALI fuses the arithmetic into few operators.
    """
    names = "start_of", "end_of", "to_grey"
    start, end, to_grey = (fn.external_source(name=name, dtype=dali_types.FLOAT, ndim=2) for name in names)
    odd, share = (fn.external_source(name=n, device=device, dtype=dali_types.FLOAT, ndim=1) for n in ("odd", "share"))
    most = fn.reductions.max(frames, axes=[2], keep_dims=True)
    least = fn.reductions.min(frames, axes=[2], keep_dims=True)
    both, part = fn.cast(most, dtype=dali_types.FLOAT) + least, (most - least) * share
    begin = fn.coord_transform(frames, M=start) + odd * both
    target = fn.coord_transform(frames, M=end) + (1 - odd) * both
    falling = math.min(math.max(target, least + part), begin)
    middle = math.max(falling, math.min(target, most - part))
    turned = fn.cast(begin + target - middle, dtype=dali_types.UINT8)
    return fn.cast(fn.coord_transform(turned, M=to_grey), dtype=dali_types.UINT8)


def _turns(drawn: Augmentation) -> dict[str, np.ndarray]:
    """Inputs of :func:`_hue_turned`: matrices to both ends of the sixth of a turn that a hue ends in, and to grey."""
    sixths = 6 * drawn.hue.astype(np.float64) % 6
    first = sixths.astype(np.int64)
    odd = first % 2
    eye = np.eye(3, dtype=np.float32)
    channels = np.arange(3)
    # Channel c goes to c + k; k odd: to its complement.
    start, end = (eye[(channels + (first + k)[:, None]) % 3] for k in (0, 1))
    return {
        "start_of": start * np.where(odd, -1, 1).astype(np.float32)[:, None, None],
        "end_of": end * np.where(odd, 1, -1).astype(np.float32)[:, None, None],
        "odd": odd.astype(np.float32)[:, None],
        "share": (sixths - first).astype(np.float32)[:, None],
        "to_grey": np.where(drawn.grey[:, None, None], TO_GREY, eye).astype(np.float32),
    }


class DecodeGraphs:
    """A few decode graphs from ``make``, so that one can parse headers while another one's pixels are computed.

    A graph that failed is thrown away (DALI says it is no longer valid) and a new one is built in its place. On a GPU a
    new graph first decodes a full batch: its memory is then as large as it gets before training takes the rest.
    """

    def __init__(self, count: int, make: Callable[[], DecodeGraph]) -> None:
        self._make = make
        self._idle: queue.SimpleQueue[DecodeGraph | None] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(None)

    def decode(
        self, jpegs: Sequence[bytes], boxes: np.ndarray, sizes: np.ndarray, clear: np.ndarray
    ) -> list[torch.Tensor] | torch.Tensor:
        """As :meth:`DecodeGraph.decode`; waits for an idle graph."""
        graph = self._idle.get()
        try:
            if graph is None:
                graph = self._make()
                if graph.on_gpu:
                    full = np.arange(graph.batch_size) % len(jpegs)
                    graph.decode([jpegs[k] for k in full.tolist()], boxes[full], sizes[full], clear[full])
            frames = graph.decode(jpegs, boxes, sizes, clear)
        except BaseException:
            self._idle.put(None)
            raise
        self._idle.put(graph)
        return frames
