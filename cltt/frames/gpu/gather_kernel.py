"""The Triton kernel of gather.py, and its launch. A program does a run of one frame's pixels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cltt.frames.gather import BatchFormat, statistics

_BLOCK = 1024  # numbers of a program, of each channel where channels lie apart


def launch(rows: torch.Tensor, slots: torch.Tensor, image_size: int, wanted: BatchFormat) -> torch.Tensor:
    """As :func:`cltt.frames.gather.gather`, of a float type."""
    shape = (len(slots), 3, image_size, image_size)
    out = torch.empty(shape, dtype=wanted.dtype, device=rows.device, memory_format=wanted.order)
    pixels = image_size * image_size
    grid = (len(slots), triton.cdiv(pixels * 3 if wanted.channels_last else pixels, _BLOCK))
    offset, scale = statistics(wanted.normalise)
    with torch.cuda.device_of(rows):
        gather_kernel[grid](
            rows,
            slots,
            out,
            rows.stride(0),
            pixels,
            *offset.tolist(),
            *scale.tolist(),
            CHANNELS_LAST=wanted.channels_last,
            BLOCK=_BLOCK,
        )
    return out


@triton.jit
def gather_kernel(  # type: ignore[no-untyped-def]
    rows, slots, out, row_bytes, pixels, offset0, offset1, offset2, scale0, scale1, scale2,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[n, c, p] = (rows[slots[n], 3 p + c] - offset[c]) * scale[c], as [n, c, p] or as [n, p, c] in memory."""
    frame = tl.program_id(0).to(tl.int64)
    source = rows + tl.load(slots + frame) * row_bytes
    target = out + frame * pixels * 3
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        c = place % 3
        offset = tl.where(c == 0, offset0, tl.where(c == 1, offset1, offset2))
        scale = tl.where(c == 0, scale0, tl.where(c == 1, scale1, scale2))
        inside = place < pixels * 3
        x = (tl.load(source + place, mask=inside, other=0).to(tl.float32) - offset) * scale
        tl.store(target + place, x.to(out.dtype.element_ty), mask=inside)
    else:
        inside = place < pixels
        for c in tl.static_range(3):
            offset = offset0 if c == 0 else offset1 if c == 1 else offset2
            scale = scale0 if c == 0 else scale1 if c == 1 else scale2
            x = (tl.load(source + place * 3 + c, mask=inside, other=0).to(tl.float32) - offset) * scale
            tl.store(target + c * pixels + place, x.to(out.dtype.element_ty), mask=inside)
