"""Row log-sum-exps and gradients of the loss as Triton kernels (private to loss.py; see _loss_chunked.py for the twin).

Legend: N frames in all, D their length, T frames in a window; a program owns BM rows and visits BN columns at a time.
``v`` [N, D] are unit rows divided by sqrt(temperature), so the logits are S = v v^T and |S| <= 1/temperature.

Products take v as it is (bf16, fp16, or fp32 as three tf32 products) and accumulate in fp32; all else is fp32. As in
FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691) rows stay on chip while columns stream by. There the
backward pass does five products a tile; here keys, queries and values are one matrix and only one remains beside S.

Few rows do not fill a GPU: the columns are then split among programs, whose results are added afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cltt.loss.chunked import Rows

# fp16 ends at 6e-8, not far below weights of 1/N: they are multiplied by this before the product, to at most 2 * 2^14.
_FP16_GAIN = 2.0**14


@dataclass(frozen=True)
class _Blocks:
    """Sizes of a kernel: BM rows, BN columns, DB features a product; ``resident``: DB covers D, rows are read once."""

    bm: int
    bn: int
    db: int
    resident: bool
    warps: int
    stages: int


def _blocks(width: int, dtype: torch.dtype, roomy: bool = True) -> _Blocks:
    """Sizes that fit a multiprocessor's shared memory and its 64 K registers.

    Largest: bf16, D = 128: rows 128 x 128 x 2 B = 32 KiB and columns of as much in 3 stages = 96 KiB, of the 227 KiB of
    a Hopper or 163 KiB of an A100; GPUs with 99 KiB (``roomy`` False) get by with 2 stages. Fixed sizes, not an
    autotuner: the first step must not take a minute.
    """
    padded = max(16, triton.next_power_of_2(width))
    if dtype == torch.float32:  # three tf32 products a product: twice the registers
        return _Blocks(64, 32, min(padded, 64), padded <= 64, 8, 2)
    if padded <= 128:
        return _Blocks(128, 128, padded, True, 8, 3 if roomy else 2)
    if padded <= 256:
        return _Blocks(64, 64, padded, True, 8, 2)
    return _Blocks(64, 64, 128, False, 8, 2)


def row_logsumexp(v: torch.Tensor, rows: Rows, *, with_hits: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`cltt.loss.chunked.row_logsumexp`; v bf16, fp16 or fp32, the log-sum-exps fp32."""
    blocks = _blocks(v.shape[1], v.dtype, _roomy(v.device))
    splits, columns_each = _split(v, rows, blocks)
    # planes: log-sum-exp, best positive, best negative
    out = torch.empty(3 if with_hits else 1, splits, rows.count, dtype=torch.float32, device=v.device)
    with torch.cuda.device_of(v):
        _row_kernel[(triton.cdiv(rows.count, blocks.bm), splits)](
            v,
            _planes(rows, v),
            out,
            rows.first,
            rows.count,
            len(v),
            columns_each,
            out.stride(0),
            **_constants(v, rows, blocks),
            UNSHIFTED=rows.unshifted(torch.float32),
            WITH_HITS=with_hits,
        )
    lse = out[0].logsumexp(0)
    return lse, (out[1].amax(0) > out[2].amax(0)) if with_hits else None


def weighted_rows(v: torch.Tensor, lse: torch.Tensor, rows: Rows) -> torch.Tensor:
    """As :func:`cltt.loss.chunked.weighted_rows`; lse and the result are fp32."""
    blocks = _blocks(v.shape[1], v.dtype, _roomy(v.device))
    splits, columns_each = _split(v, rows, blocks)
    gain = _FP16_GAIN if v.dtype == torch.float16 else 1.0
    unshifted = rows.unshifted(torch.float32)
    scale = (-lse).exp() * gain if unshifted else lse - math.log(gain)
    out = torch.empty(splits, rows.count, v.shape[1], dtype=torch.float32, device=v.device)
    with torch.cuda.device_of(v):
        _weighted_kernel[(triton.cdiv(rows.count, blocks.bm), splits, _output_chunks(v, blocks))](
            v,
            _planes(rows, v),
            scale.contiguous(),
            out,
            rows.first,
            rows.count,
            len(v),
            columns_each,
            **_constants(v, rows, blocks),
            DC=_output_width(blocks),
            UNSHIFTED=unshifted,
        )
    total = out[0] if splits == 1 else out.sum(0)
    return total if gain == 1.0 else total.div_(gain)


def _output_width(blocks: _Blocks) -> int:
    """Features of the gradient a program sums up: all where the rows are resident, else as many as registers hold."""
    return blocks.db if blocks.resident else 2 * blocks.db


def _output_chunks(v: torch.Tensor, blocks: _Blocks) -> int:
    return triton.cdiv(v.shape[1], _output_width(blocks))


def _split(v: torch.Tensor, rows: Rows, blocks: _Blocks) -> tuple[int, int]:
    """Into how many parts the columns are split, and the columns of a part: about two programs a multiprocessor."""
    wanted = max(1, 2 * _multiprocessors(v.device) // triton.cdiv(rows.count, blocks.bm))
    column_blocks = triton.cdiv(len(v), blocks.bn)
    each = triton.cdiv(column_blocks, min(wanted, column_blocks))
    return triton.cdiv(column_blocks, each), each * blocks.bn


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _roomy(device: torch.device) -> bool:
    """Whether a block of threads may take 163 KiB of shared memory or more.

    Elsewhere it is 99 KiB (CUDA C++ programming guide, technical specifications per compute capability).
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device) in (
        (8, 0),
        (8, 7),
        (9, 0),
        (10, 0),
        (10, 3),
    )


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
        "num_stages": blocks.stages,
    }


@triton.jit
def _load(v, rows, end, dims, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """v[rows, dims], zero beyond row ``end`` and column D; 64-bit offsets, since N * D may pass 2^31."""
    inside = (rows < end)[:, None] & (dims < D)[None, :]
    return tl.load(v + rows.to(tl.int64)[:, None] * D + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _logits(v, rows, end, columns, N, D: tl.constexpr, DB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # type: ignore[no-untyped-def]
    """S[rows, columns] where D is too wide to keep the rows on chip: DB features at a time."""
    s = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, D, DB):
        dims = start + tl.arange(0, DB)
        a = _load(v, rows, end, dims, D)
        b = _load(v, columns, N, dims, D)
        s = tl.dot(a, tl.trans(b), s, input_precision="tf32x3")
    return s


@triton.jit
def _hidden(rows, columns, N, spans, T: tl.constexpr, HAS_SPANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is in no denominator: columns that do not exist, a frame with itself, overlapping windows of one clip."""
    hidden = (columns >= N)[None, :] | (rows[:, None] == columns[None, :])
    if HAS_SPANS:
        B = N // T
        a = rows // T
        b = columns // T
        clip_a = tl.load(spans + a, mask=a < B, other=-1)[:, None]
        clip_b = tl.load(spans + b, mask=b < B, other=-1)[None, :]
        first_a = tl.load(spans + B + a, mask=a < B, other=0)[:, None]
        first_b = tl.load(spans + B + b, mask=b < B, other=0)[None, :]
        last_a = tl.load(spans + 2 * B + a, mask=a < B, other=0)[:, None]
        last_b = tl.load(spans + 2 * B + b, mask=b < B, other=0)[None, :]
        overlap = (clip_a == clip_b) & (first_a <= last_b) & (first_b <= last_a)
        hidden = hidden | (overlap & (a[:, None] != b[None, :]))
    return hidden


@triton.jit
def _row_kernel(  # type: ignore[no-untyped-def]
    v, spans, out, first, count, N, columns_each, plane,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, UNSHIFTED: tl.constexpr, WITH_HITS: tl.constexpr,
):  # fmt: skip
    """out[0, split, row] = log-sum-exp over the split's columns; [1] and [2] the best positive and negative logit."""
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = first + local
    split = tl.program_id(1)
    dims = tl.arange(0, DB)
    if RESIDENT:
        a = _load(v, rows, first + count, dims, D)
    top = tl.full((BM,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    positive = tl.full((BM,), float("-inf"), dtype=tl.float32)
    negative = tl.full((BM,), float("-inf"), dtype=tl.float32)
    begin = split * columns_each
    for left in range(begin, tl.minimum(begin + columns_each, N), BN):
        columns = left + tl.arange(0, BN)
        if RESIDENT:
            s = tl.dot(a, tl.trans(_load(v, columns, N, dims, D)), input_precision="tf32x3")
        else:
            s = _logits(v, rows, first + count, columns, N, D, DB, BM, BN)
        s = tl.where(_hidden(rows, columns, N, spans, T, HAS_SPANS), float("-inf"), s)
        if WITH_HITS:
            same = (rows // T)[:, None] == (columns // T)[None, :]
            positive = tl.maximum(positive, tl.max(tl.where(same, s, float("-inf")), 1))
            negative = tl.maximum(negative, tl.max(tl.where(same, float("-inf"), s), 1))
        if UNSHIFTED:
            total += tl.sum(tl.exp(s), 1)
        else:
            raised = tl.maximum(top, tl.max(s, 1))
            shift = tl.where(raised == float("-inf"), 0.0, raised)  # all hidden so far: -inf - -inf would be NaN
            total = total * tl.exp(top - shift) + tl.sum(tl.exp(s - shift[:, None]), 1)
            top = raised
    lse = tl.log(total) if UNSHIFTED else tl.where(top == float("-inf"), top + total * 0, top + tl.log(total))
    target = out + split.to(tl.int64) * count + local
    tl.store(target, lse, mask=local < count)
    if WITH_HITS:
        tl.store(target + plane, positive, mask=local < count)
        tl.store(target + 2 * plane, negative, mask=local < count)


@triton.jit
def _weighted_kernel(  # type: ignore[no-untyped-def]
    v, spans, scale, out, first, count, N, columns_each,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr, DC: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, UNSHIFTED: tl.constexpr,
):  # fmt: skip
    """out[split, row, chunk of D] = sum over the split's columns j of (exp(S_ij - lse_i) + exp(S_ij - lse_j)) v_j."""
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = first + local
    end = first + count
    split = tl.program_id(1)
    dims = tl.program_id(2) * DC + tl.arange(0, DC)
    if RESIDENT:
        a = _load(v, rows, end, dims, D)
    at_rows = tl.load(scale + rows, mask=rows < end, other=0.0)[:, None]
    total = tl.zeros((BM, DC), dtype=tl.float32)
    begin = split * columns_each
    for left in range(begin, tl.minimum(begin + columns_each, N), BN):
        columns = left + tl.arange(0, BN)
        b = _load(v, columns, N, dims, D)
        if RESIDENT:
            s = tl.dot(a, tl.trans(b), input_precision="tf32x3")
        else:
            s = _logits(v, rows, end, columns, N, D, DB, BM, BN)
        at_columns = tl.load(scale + columns, mask=columns < N, other=0.0)[None, :]
        if UNSHIFTED:
            weights = tl.exp(s) * (at_rows + at_columns)
        else:
            weights = tl.exp(s - at_rows) + tl.exp(s - at_columns)
        weights = tl.where(_hidden(rows, columns, N, spans, T, HAS_SPANS), 0.0, weights)
        total = tl.dot(weights.to(v.dtype.element_ty), b, total, input_precision="tf32x3")
    offsets = (split.to(tl.int64) * count + local)[:, None] * D + dims[None, :]
    tl.store(out + offsets, total, mask=(local < count)[:, None] & (dims < D)[None, :])
