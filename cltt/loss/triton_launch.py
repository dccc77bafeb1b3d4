"""Launches the Triton kernels: chooses tile sizes, divides the work, sums the parts.

It has the interface of chunked.py; triton_kernels.py says what the kernels compute and what the letters mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

from cltt.loss.chunked import Rows
from cltt.loss.triton_kernels import gradient_kernel, mirrored_kernel, row_kernel

NATS = math.log(2)  # the logits of these kernels are in base 2; times this they are those of the loss
# The smallest fp16 is 6e-8, not far below weights of 1/N. They are multiplied by this before the product, to at most
# 2 * 2^14.
_FP16_GAIN = 2.0**14
_WIDE_SHARED = 200 * 1024  # bytes of shared memory that a program may use on compute capability 9.0 or higher


@dataclass(frozen=True)
class _Blocks:
    """Sizes of a kernel.

    Attributes:
        bm: rows per program.
        bn: columns per tile.
        db: features per product.
        dc: features of the gradient per program.
        resident: db covers D, so the rows are read once.
        warps: warps per program.
    """

    bm: int
    bn: int
    db: int
    dc: int
    resident: bool
    warps: int

    @property
    def programs(self) -> int:
        """Programs per multiprocessor at a time; 4 warps use 128 registers a thread, 8 use 255."""
        return 8 // self.warps

    def stages(self, shared: int) -> int:
        """Tiles that are loaded ahead if a program may use ``shared`` bytes of shared memory.

        With two, the gradient kernel waits for each tile right after it requests it. With three, two loads run during
        the products. On compute capability 8.0 a third stage spills registers.
        """
        return 3 if self.dc and self.resident and shared >= _WIDE_SHARED else 2


# Fixed sizes instead of an autotuner, which would make the first step take a minute. For compute capability 8.0 to 9.0
# (tests) the compiler spills no register with them, and shared memory holds as many programs as ``programs`` says.
def _row_blocks(width: int, dtype: torch.dtype) -> _Blocks:
    """Sizes for the kernels that sum over rows; square, as a tile may be used transposed, too."""
    padded = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:  # a product is three tf32 products, which need twice the registers
        return _Blocks(64, 64, min(padded, 32), 0, False, 8)
    if padded <= 128:
        return _Blocks(128, 128, padded, 0, True, 4)
    if padded <= 256:
        return _Blocks(64, 64, padded, 0, True, 4)
    return _Blocks(128, 128, 64, 0, False, 8)


def _grad_blocks(width: int, dtype: torch.dtype) -> _Blocks:
    """Sizes for the kernel that sums the gradient."""
    padded = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:
        return _Blocks(64, 32, min(padded, 32), min(padded, 128), False, 8)
    if padded <= 128:
        return _Blocks(128, 128, padded, padded, True, 8)
    if padded <= 256:
        return _Blocks(64, 64, padded, padded, True, 8)
    return _Blocks(64, 32, 128, 512, False, 8)


def row_logsumexp(v: torch.Tensor, rows: Rows, *, with_top1: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`cltt.loss.chunked.row_logsumexp`, for v in bf16, fp16 or fp32.

    The log-sum-exps are fp32, base 2.
    """
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
    """As :func:`row_logsumexp` for all rows, computed from half of the tiles."""
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
    """As :func:`cltt.loss.chunked.grad_rows`, with lse in base 2; lse and the result are fp32."""
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
    """Number of parts that the ``tiles`` of a block of rows are split into, and tiles per part.

    ``slots`` programs run at a time, so a last wave with few programs wastes time. The split is the one with the fewest
    tiles computed in sequence, where the start of a program costs about two tiles. There are at most four waves, or one
    program per block, as each part needs memory for its result.
    """

    def tiles_in_turn(splits: int) -> int:
        return triton.cdiv(row_blocks * splits, slots) * (triton.cdiv(tiles, splits) + 2)

    most = min(tiles, triton.cdiv(4 * slots, row_blocks))
    each = triton.cdiv(tiles, min(range(1, most + 1), key=tiles_in_turn))
    return triton.cdiv(tiles, each), each


def _slots(v: torch.Tensor, blocks: _Blocks) -> int:
    """Programs that run on the device at a time."""
    return _multiprocessors(v.device) * blocks.programs


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@lru_cache(maxsize=8)
def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a program may use; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def _planes(rows: Rows, v: torch.Tensor) -> torch.Tensor:
    """The spans as contiguous int64 [3, N/T].

    Without spans it returns ``v``, which the kernels then do not read.
    """
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
