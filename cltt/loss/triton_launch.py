"""Launching the Triton kernels of the loss: sizes of their tiles, how the work is shared out, sums of the parts.

The twin of chunked.py for CUDA; what a kernel computes, and the legend, stand in triton_kernels.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

from cltt.loss.chunked import Rows
from cltt.loss.triton_kernels import gradient_kernel, mirrored_kernel, row_kernel

NATS = math.log(2)  # the logits of these kernels, and what comes of them, times this are those of the loss
# fp16 ends at 6e-8, not far below weights of 1/N: they are multiplied by this before the product, to at most 2 * 2^14.
_FP16_GAIN = 2.0**14
_WIDE_SHARED = 200 * 1024  # bytes of shared memory a program may have, from compute capability 9.0 on


@dataclass(frozen=True)
class _Blocks:
    """Sizes of a kernel.

    Attributes:
        bm: rows of a program. bn: columns of a tile.
        db: features a product; ``resident``: db covers D, and the rows are read once.
        dc: features of the gradient that a program sums up.
        warps: of a program.
    """

    bm: int
    bn: int
    db: int
    dc: int
    resident: bool
    warps: int

    @property
    def programs(self) -> int:
        """Programs that run on a multiprocessor at a time: 16 x 32 threads of 128 registers, or 8 x 32 of 255."""
        return 8 // self.warps

    def stages(self, shared: int) -> int:
        """Tiles in flight where a program may have ``shared`` bytes of shared memory.

        With two, the gradient kernel waits for each tile right after asking for it; with three, two loads are under way
        during the products. On compute capability 8.0 the third costs spilled registers.
        """
        return 3 if self.dc and self.resident and shared >= _WIDE_SHARED else 2


# Fixed sizes, not an autotuner: the first step must not take a minute. Chosen from what the compiler makes of them for
# compute capability 8.0 to 9.0 (tests): no register is spilled, and shared memory holds as many programs as said above.
def _row_blocks(width: int, dtype: torch.dtype) -> _Blocks:
    """Of the kernels that sum over rows; square, since a tile may serve twice."""
    padded = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:  # three tf32 products a product: twice the registers
        return _Blocks(64, 64, min(padded, 32), 0, False, 8)
    if padded <= 128:
        return _Blocks(128, 128, padded, 0, True, 4)
    if padded <= 256:
        return _Blocks(64, 64, padded, 0, True, 4)
    return _Blocks(128, 128, 64, 0, False, 8)


def _grad_blocks(width: int, dtype: torch.dtype) -> _Blocks:
    """Of the kernel that sums the gradient."""
    padded = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:
        return _Blocks(64, 32, min(padded, 32), min(padded, 128), False, 8)
    if padded <= 128:
        return _Blocks(128, 128, padded, padded, True, 8)
    if padded <= 256:
        return _Blocks(64, 64, padded, padded, True, 8)
    return _Blocks(64, 32, 128, 512, False, 8)


def row_logsumexp(v: torch.Tensor, rows: Rows, *, with_top1: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`cltt.loss.chunked.row_logsumexp`; v bf16, fp16 or fp32, the log-sum-exps fp32 and in base 2."""
    blocks = _row_blocks(v.shape[1], v.dtype)
    if rows.count == len(v) and rows.unshifted(torch.float32):
        return _mirrored(v, rows, blocks, with_top1)
    row_blocks, tiles = triton.cdiv(rows.count, blocks.bm), triton.cdiv(len(v), blocks.bn)
    splits, each = _split(row_blocks, tiles, _slots(v, blocks))
    # planes: log-sum-exp, best positive, best negative
    out = v.new_empty((3 if with_top1 else 1, splits, rows.count), dtype=torch.float32)
    with torch.cuda.device_of(v):
        row_kernel[(row_blocks, splits)](
            v,
            _planes(rows, v),
            out,
            rows.first,
            rows.count,
            len(v),
            each,
            out.stride(0),
            **_constants(v, rows, blocks),
            UNSHIFTED=rows.unshifted(torch.float32),
            WITH_TOP1=with_top1,
        )
    lse = torch.logsumexp(out[0] * NATS, 0) / NATS if splits > 1 else out[0, 0]
    return lse, (out[1].amax(0) > out[2].amax(0)) if with_top1 else None


def _mirrored(
    v: torch.Tensor, rows: Rows, blocks: _Blocks, with_top1: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`row_logsumexp` of all rows, from half of the tiles."""
    full, ragged = len(v) // blocks.bn, int(len(v) % blocks.bn > 0)
    places = full * (full // 2 + 1 + ragged) + ragged
    each = triton.cdiv(places, _slots(v, blocks))
    programs = triton.cdiv(places, each)
    # planes: sum, best positive, best negative
    out = v.new_full((3 if with_top1 else 1, programs, len(v)), -math.inf, dtype=torch.float32)
    out[0].zero_()
    with torch.cuda.device_of(v):
        mirrored_kernel[(programs,)](
            v,
            _planes(rows, v),
            out,
            len(v),
            places,
            each,
            out.stride(0),
            **_constants(v, rows, blocks),
            WITH_TOP1=with_top1,
        )
    return out[0].sum(0).log2(), (out[1].amax(0) > out[2].amax(0)) if with_top1 else None


def grad_rows(v: torch.Tensor, lse: torch.Tensor, rows: Rows) -> torch.Tensor:
    """As :func:`cltt.loss.chunked.grad_rows`; lse in base 2, it and the result fp32."""
    blocks = _grad_blocks(v.shape[1], v.dtype)
    row_blocks, chunks = triton.cdiv(rows.count, blocks.bm), triton.cdiv(v.shape[1], blocks.dc)
    splits, each = _split(row_blocks * chunks, triton.cdiv(len(v), blocks.bn), _slots(v, blocks))
    gain = _FP16_GAIN if v.dtype == torch.float16 else 1.0
    unshifted = rows.unshifted(torch.float32)
    scale = (-lse).exp2() * gain if unshifted else lse - math.log2(gain)
    out = v.new_empty((splits, rows.count, v.shape[1]), dtype=torch.float32)
    with torch.cuda.device_of(v):
        gradient_kernel[(row_blocks, splits, chunks)](
            v,
            _planes(rows, v),
            scale.contiguous(),
            out,
            rows.first,
            rows.count,
            len(v),
            each,
            **_constants(v, rows, blocks),
            DC=blocks.dc,
            UNSHIFTED=unshifted,
        )
    total = out[0] if splits == 1 else out.sum(0)
    return total if gain == 1.0 else total.div_(gain)


def _split(row_blocks: int, tiles: int, slots: int) -> tuple[int, int]:
    """Into how many parts the ``tiles`` of a block of rows are split, and the tiles of a part.

    ``slots`` programs run at a time, so that a last wave of few programs wastes most of its time: the split that needs
    the fewest tiles one after the other. Starting a program costs about two tiles. At most four waves beyond one
    program a block: each part has a result of its own.
    """

    def tiles_in_turn(splits: int) -> int:
        return triton.cdiv(row_blocks * splits, slots) * (triton.cdiv(tiles, splits) + 2)

    most = min(tiles, triton.cdiv(4 * slots, row_blocks))
    each = triton.cdiv(tiles, min(range(1, most + 1), key=tiles_in_turn))
    return triton.cdiv(tiles, each), each


def _slots(v: torch.Tensor, blocks: _Blocks) -> int:
    """Programs that run at a time."""
    return _multiprocessors(v.device) * blocks.programs


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@lru_cache(maxsize=8)
def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    if device.type != "cuda":
        return 0
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def _planes(rows: Rows, v: torch.Tensor) -> torch.Tensor:
    """The spans as int64 [3, N/T], one contiguous plane each; without spans anything may stand in their place."""
    return v if rows.spans is None else rows.spans.T.contiguous()


def _constants(v: torch.Tensor, rows: Rows, blocks: _Blocks) -> dict[str, object]:
    return {
        "T": rows.window_size,
        "D": v.shape[1],
        "BM": blocks.bm,
        "BN": blocks.bn,
        "DB": blocks.db,
        "RESIDENT": blocks.resident,
        "HAS_SPANS": rows.spans is not None,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages(_shared(v.device)),
    }
