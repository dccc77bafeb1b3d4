"""Where decoded frames lie.

Legend: h, w height and width of a kept frame; P most pixels of a kept frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from cltt.pixels import Framing


class FrameStore:
    """Slots for decoded frames. A frame fills the first h*w*3 bytes of its slot, row by row, RGB.

    Attributes:
        pixels: uint8 [slots, P*3] on ``device``.
        sizes: int32 [slots, 2], h and w, on the host.
        gathered: on CUDA, the event after which every slot given back so far may be written to.
    """

    def __init__(self, slots: int, framing: Framing, device: torch.device) -> None:
        self.framing = framing
        self.gathered: torch.cuda.Event | None = None
        self.sizes = np.full((slots, 2), framing.short, dtype=np.int32)
        shape = (slots, framing.pixels * 3)
        # numpy asks the kernel for huge pages, torch does not. A slot that is never used takes no memory.
        self.pixels = (
            torch.from_numpy(np.empty(shape, np.uint8))
            if device.type == "cpu"
            else torch.empty(shape, dtype=torch.uint8, device=device)
        )

    @property
    def slots(self) -> int:
        return len(self.pixels)

    def frame(self, slot: int) -> torch.Tensor:
        """The frame in ``slot``, uint8 [h, w, 3], a view."""
        height, width = self.sizes[slot].tolist()
        return self.pixels[slot, : height * width * 3].view(height, width, 3)


@contextmanager
def own_stream(device: torch.device) -> Iterator[torch.cuda.Stream | None]:
    """On CUDA, work on a stream of its own inside and wait for it at the end; nothing elsewhere."""
    if device.type != "cuda":
        yield None
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield stream
    stream.synchronize()
