"""Row log-sum-exps and gradients of the loss as Triton kernels (private to loss.py; see _loss_chunked.py for the twin).

Legend: N frames in all, D their length, T frames in a window; a program owns BM rows and visits BN columns at a time,
one tile after the other. ``v`` [N, D] are unit rows divided by sqrt(temperature * NATS), so that v v^T are the logits
in base 2, log2(e) S: the kernels then exponentiate by the one instruction a GPU has for it, 2^x, without a product.

Products take v as it is (bf16, fp16, or fp32 as three tf32 products) and accumulate in fp32; all else is fp32. As in
FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691) rows stay on chip while columns stream by. There the
backward pass does five products a tile; here keys, queries and values are one matrix and only one remains beside S.

Most tiles hold no pair that must be hidden. Each kernel visits the few that do first (those on the diagonal, and a last
one that is not full), with masks, and the others in a loop without.

Where one process holds all rows, S is symmetric, and each tile off the diagonal is computed once, for its rows and for
its columns. Seven blocks of rows, and the tiles each visits (d: diagonal, x: used twice):

    d x x x . . .      block i visits the tiles i to i + 7 // 2, modulo 7, so that every block has as many, and every
    . d x x x . .      unordered pair of blocks is met once (of an even number the last of them is met from both sides,
    . . d x x x .      and used once by each); a ragged last block is visited by all.
    . . . d x x x
    x . . . d x x      These tiles lie end to end in a line, which the programs share out evenly, as many as run at a
    x x . . . d x      time. Each adds up in a row of memory of its own, so that memory stays linear in N, and the sums
    x x x . . . d      are in one order, without atomics.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from cltt._loss_chunked import Rows

NATS = math.log(2)  # the logits of these kernels, and what comes of them, times this are those of the loss
# fp16 ends at 6e-8, not far below weights of 1/N: they are multiplied by this before the product, to at most 2 * 2^14.
_FP16_GAIN = 2.0**14
_STAGES = 2  # one tile is loaded while one is worked on


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


# Fixed sizes, not an autotuner: the first step must not take a minute. Chosen from what the compiler makes of them for
# compute capability 8.0 to 9.0: no register is spilled, and shared memory is enough for the programs said above (tests).
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


def row_logsumexp(v: torch.Tensor, rows: Rows, *, with_hits: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`cltt._loss_chunked.row_logsumexp`; v bf16, fp16 or fp32, the log-sum-exps fp32 and in base 2."""
    blocks = _row_blocks(v.shape[1], v.dtype)
    if rows.count == len(v) and rows.unshifted(torch.float32):
        return _mirrored(v, rows, blocks, with_hits)
    row_blocks, tiles = triton.cdiv(rows.count, blocks.bm), triton.cdiv(len(v), blocks.bn)
    splits, each = _split(row_blocks, tiles, _slots(v, blocks))
    # planes: log-sum-exp, best positive, best negative
    out = v.new_empty((3 if with_hits else 1, splits, rows.count), dtype=torch.float32)
    with torch.cuda.device_of(v):
        _row_kernel[(row_blocks, splits)](
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
            WITH_HITS=with_hits,
        )
    lse = torch.logsumexp(out[0] * NATS, 0) / NATS if splits > 1 else out[0, 0]
    return lse, (out[1].amax(0) > out[2].amax(0)) if with_hits else None


def _mirrored(
    v: torch.Tensor, rows: Rows, blocks: _Blocks, with_hits: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`row_logsumexp` of all rows, from half of the tiles."""
    full, ragged = len(v) // blocks.bn, int(len(v) % blocks.bn > 0)
    places = full * (full // 2 + 1 + ragged) + ragged
    each = triton.cdiv(places, _slots(v, blocks))
    programs = triton.cdiv(places, each)
    # planes: sum, best positive, best negative
    out = v.new_full((3 if with_hits else 1, programs, len(v)), -math.inf, dtype=torch.float32)
    out[0].zero_()
    with torch.cuda.device_of(v):
        _mirrored_kernel[(programs,)](
            v,
            _planes(rows, v),
            out,
            len(v),
            places,
            each,
            out.stride(0),
            **_constants(v, rows, blocks),
            WITH_HITS=with_hits,
        )
    return out[0].sum(0).log2(), (out[1].amax(0) > out[2].amax(0)) if with_hits else None


def weighted_rows(v: torch.Tensor, lse: torch.Tensor, rows: Rows) -> torch.Tensor:
    """As :func:`cltt._loss_chunked.weighted_rows`; lse in base 2, it and the result fp32."""
    blocks = _grad_blocks(v.shape[1], v.dtype)
    row_blocks, chunks = triton.cdiv(rows.count, blocks.bm), triton.cdiv(v.shape[1], blocks.dc)
    splits, each = _split(row_blocks * chunks, triton.cdiv(len(v), blocks.bn), _slots(v, blocks))
    gain = _FP16_GAIN if v.dtype == torch.float16 else 1.0
    unshifted = rows.unshifted(torch.float32)
    scale = (-lse).exp2() * gain if unshifted else lse - math.log2(gain)
    out = v.new_empty((splits, rows.count, v.shape[1]), dtype=torch.float32)
    with torch.cuda.device_of(v):
        _weighted_kernel[(row_blocks, splits, chunks)](
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
        "num_stages": _STAGES,
    }


@triton.jit
def _load(v, rows, end, dims, D: tl.constexpr, DB: tl.constexpr, CHECKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """v[rows, dims], zero beyond row ``end`` (``CHECKED``) and column D; 64-bit offsets, since N * D may pass 2^31."""
    pointers = v + rows.to(tl.int64)[:, None] * D + dims[None, :]
    if CHECKED:
        return tl.load(pointers, mask=(rows < end)[:, None] & (dims < D)[None, :], other=0.0)
    elif D % DB != 0:
        return tl.load(pointers, mask=(dims < D)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def _logits(  # type: ignore[no-untyped-def]
    v, a, rows, end, columns, N,
    D: tl.constexpr, DB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    RESIDENT: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """S[rows, columns] from the resident rows ``a``, or DB features at a time where D is too wide to keep them."""
    if RESIDENT:
        b = _load(v, columns, N, tl.arange(0, DB), D, DB, CHECKED)
        return tl.dot(a, tl.trans(b), input_precision="tf32x3")
    else:
        s = tl.zeros((BM, BN), dtype=tl.float32)
        for start in range(0, D, DB):
            dims = start + tl.arange(0, DB)
            part = _load(v, rows, end, dims, D, DB, True)
            b = _load(v, columns, N, dims, D, DB, CHECKED)
            s = tl.dot(part, tl.trans(b), s, input_precision="tf32x3")
        return s


@triton.jit
def _hidden(rows, columns, end, N, spans, T: tl.constexpr, HAS_SPANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """What is in no denominator: frames that do not exist, a frame with itself, overlapping windows of one clip."""
    hidden = (rows >= end)[:, None] | (columns >= N)[None, :] | (rows[:, None] == columns[None, :])
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
def _band(row, end, N, BM: tl.constexpr, BN: tl.constexpr, T: tl.constexpr, WINDOWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the masked tiles of rows [row, row + BM) lie: first tile, number of tiles, number of masked tiles.

    Masked are the tiles that hold the rows themselves (with ``WINDOWS``: all of their windows), and a ragged last one.
    """
    full = N // BN
    first = row
    last = tl.minimum(row + BM, end)
    if WINDOWS:
        first = row // T * T
        last = tl.minimum((last + T - 1) // T * T, N)
    lo = tl.minimum(first // BN, full)
    width = tl.minimum((last + BN - 1) // BN, full) - lo
    return lo, width, width + tl.where(N % BN == 0, 0, 1)


@triton.jit
def _masked_tile(place, lo, width, N, BN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile at a place before the clean ones: those of the band, then the ragged one."""
    return tl.where(place < width, lo + place, N // BN)


@triton.jit
def _clean_tile(place, lo, width, masked):  # type: ignore[no-untyped-def]
    """The tile at a place behind the masked ones: the band is stepped over."""
    tile = place - masked
    return tl.where(tile < lo, tile, tile + width)


@triton.jit
def _add(s, top, total, UNSHIFTED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add a tile to the running maximum and sum of 2^S of its rows."""
    if UNSHIFTED:
        return top, total + tl.sum(tl.exp2(s), 1)
    else:
        raised = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(raised == float("-inf"), 0.0, raised)  # all hidden so far: -inf - -inf would be NaN
        return raised, total * tl.exp2(top - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)


@triton.jit
def _row_kernel(  # type: ignore[no-untyped-def]
    v, spans, out, first, count, N, tiles_each, plane,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, UNSHIFTED: tl.constexpr, WITH_HITS: tl.constexpr,
):  # fmt: skip
    """out[0, split, row] = log2-sum-exp2 over the split's columns; [1] and [2] the best positive and negative."""
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = first + local
    end = first + count
    split = tl.program_id(1)
    a = tl.zeros((1,), dtype=tl.float32)
    if RESIDENT:
        a = _load(v, rows, end, tl.arange(0, DB), D, DB, True)
    top = tl.full((BM,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    positive = tl.full((BM,), float("-inf"), dtype=tl.float32)
    negative = tl.full((BM,), float("-inf"), dtype=tl.float32)
    lo, width, masked = _band(first + tl.program_id(0) * BM, end, N, BM, BN, T, WITH_HITS)
    tiles = (N + BN - 1) // BN
    if HAS_SPANS:
        masked = tiles
    begin = split * tiles_each
    stop = tl.minimum(begin + tiles_each, tiles)
    for place in range(begin, tl.minimum(stop, masked)):
        if HAS_SPANS:
            tile = place
        else:
            tile = _masked_tile(place, lo, width, N, BN)
        columns = tile * BN + tl.arange(0, BN)
        s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, RESIDENT, True)
        s = tl.where(_hidden(rows, columns, end, N, spans, T, HAS_SPANS), float("-inf"), s)
        if WITH_HITS:
            same = (rows // T)[:, None] == (columns // T)[None, :]
            positive = tl.maximum(positive, tl.max(tl.where(same, s, float("-inf")), 1))
            negative = tl.maximum(negative, tl.max(tl.where(same, float("-inf"), s), 1))
        top, total = _add(s, top, total, UNSHIFTED)
    for place in range(tl.maximum(begin, masked), stop):
        columns = _clean_tile(place, lo, width, masked) * BN + tl.arange(0, BN)
        s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, RESIDENT, False)
        if WITH_HITS:
            negative = tl.maximum(negative, tl.max(s, 1))
        top, total = _add(s, top, total, UNSHIFTED)
    lse = tl.log2(total) if UNSHIFTED else tl.where(top == float("-inf"), top + total * 0, top + tl.log2(total))
    target = out + split.to(tl.int64) * count + local
    tl.store(target, lse, mask=local < count)
    if WITH_HITS:
        tl.store(target + plane, positive, mask=local < count)
        tl.store(target + 2 * plane, negative, mask=local < count)


@triton.jit
def _add_at(pointers, values, mask):  # type: ignore[no-untyped-def]
    tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + values, mask=mask)


@triton.jit
def _raise_at(pointers, values, mask):  # type: ignore[no-untyped-def]
    tl.store(pointers, tl.maximum(tl.load(pointers, mask=mask, other=0.0), values), mask=mask)


@triton.jit
def _mirrored_kernel(  # type: ignore[no-untyped-def]
    v, spans, out, N, places, places_each, plane,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, WITH_HITS: tl.constexpr,
):  # fmt: skip
    """out[0, program, frame] += sum of 2^S over what this program visits; [1] and [2] rise to the best logits."""
    full = N // BN
    ragged = tl.where(N % BN == 0, 0, 1)
    half = full // 2
    K = half + 1 + ragged
    masked = 1 + ragged
    if WITH_HITS:
        masked = tl.minimum(K, masked + (T - 2) // BM + 1)
    if HAS_SPANS:
        masked = K
    mine = out + tl.program_id(0).to(tl.int64) * N
    start = tl.program_id(0) * places_each
    stop = tl.minimum(start + places_each, places)
    for block in range(start // K, (stop + K - 1) // K):
        rows = block * BM + tl.arange(0, BM)
        a = tl.zeros((1,), dtype=tl.float32)
        if RESIDENT:
            a = _load(v, rows, N, tl.arange(0, DB), D, DB, True)
        total = tl.zeros((BM,), dtype=tl.float32)
        positive = tl.full((BM,), float("-inf"), dtype=tl.float32)
        negative = tl.full((BM,), float("-inf"), dtype=tl.float32)
        begin = tl.maximum(start - block * K, 0)
        end = tl.minimum(stop - block * K, K)
        for place in range(begin, tl.minimum(end, masked)):
            step = place - ragged
            tile = block + step
            tile = tl.where(tile >= full, tile - full, tile)
            tile = tl.where(place == 0, block, tl.where(step == 0, full, tile))
            columns = tile * BN + tl.arange(0, BN)
            s = _logits(v, a, rows, N, columns, N, D, DB, BM, BN, RESIDENT, True)
            s = tl.where(_hidden(rows, columns, N, N, spans, T, HAS_SPANS), float("-inf"), s)
            e = tl.exp2(s)
            total += tl.sum(e, 1)
            twice = (columns < N) & (place != 0) & ((step == 0) | (2 * step != full))
            _add_at(mine + columns, tl.sum(e, 0), twice)
            if WITH_HITS:
                same = (rows // T)[:, None] == (columns // T)[None, :]
                inside = tl.where(same, s, float("-inf"))
                outside = tl.where(same, float("-inf"), s)
                positive = tl.maximum(positive, tl.max(inside, 1))
                negative = tl.maximum(negative, tl.max(outside, 1))
                _raise_at(mine + plane + columns, tl.max(inside, 0), twice)
                _raise_at(mine + 2 * plane + columns, tl.max(outside, 0), twice)
        for place in range(tl.maximum(begin, masked), end):
            step = place - ragged
            tile = block + step
            columns = tl.where(tile >= full, tile - full, tile) * BN + tl.arange(0, BN)
            s = _logits(v, a, rows, N, columns, N, D, DB, BM, BN, RESIDENT, False)
            e = tl.exp2(s)
            total += tl.sum(e, 1)
            _add_at(mine + columns, tl.sum(e, 0), 2 * step != full)
            if WITH_HITS:
                negative = tl.maximum(negative, tl.max(s, 1))
                _raise_at(mine + 2 * plane + columns, tl.max(s, 0), 2 * step != full)
        _add_at(mine + rows, total, rows < N)
        if WITH_HITS:
            _raise_at(mine + plane + rows, positive, rows < N)
            _raise_at(mine + 2 * plane + rows, negative, rows < N)
        tl.debug_barrier()


@triton.jit
def _weighted_kernel(  # type: ignore[no-untyped-def]
    v, spans, scale, out, first, count, N, tiles_each,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr, DC: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, UNSHIFTED: tl.constexpr,
):  # fmt: skip
    """out[split, row, chunk of D] = sum over the split's columns j of (2^(S_ij - lse_i) + 2^(S_ij - lse_j)) v_j."""
    local = tl.program_id(0) * BM + tl.arange(0, BM)
    rows = first + local
    end = first + count
    split = tl.program_id(1)
    dims = tl.program_id(2) * DC + tl.arange(0, DC)
    a = tl.zeros((1,), dtype=tl.float32)
    if RESIDENT:
        a = _load(v, rows, end, dims, D, DC, True)
    at_rows = tl.load(scale + rows, mask=rows < end, other=0.0)[:, None]
    total = tl.zeros((BM, DC), dtype=tl.float32)
    lo, width, masked = _band(first + tl.program_id(0) * BM, end, N, BM, BN, T, False)
    tiles = (N + BN - 1) // BN
    if HAS_SPANS:
        masked = tiles
    begin = split * tiles_each
    stop = tl.minimum(begin + tiles_each, tiles)
    for place in range(begin, tl.minimum(stop, masked)):
        if HAS_SPANS:
            tile = place
        else:
            tile = _masked_tile(place, lo, width, N, BN)
        columns = tile * BN + tl.arange(0, BN)
        b = _load(v, columns, N, dims, D, DC, True)
        if RESIDENT:
            s = tl.dot(a, tl.trans(b), input_precision="tf32x3")
        else:
            s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, False, True)
        at_columns = tl.load(scale + columns, mask=columns < N, other=0.0)[None, :]
        weights = _weights(s, at_rows, at_columns, UNSHIFTED)
        weights = tl.where(_hidden(rows, columns, end, N, spans, T, HAS_SPANS), 0.0, weights)
        total = tl.dot(weights.to(v.dtype.element_ty), b, total, input_precision="tf32x3")
    for place in range(tl.maximum(begin, masked), stop):
        columns = _clean_tile(place, lo, width, masked) * BN + tl.arange(0, BN)
        b = _load(v, columns, N, dims, D, DC, False)
        if RESIDENT:
            s = tl.dot(a, tl.trans(b), input_precision="tf32x3")
        else:
            s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, False, False)
        weights = _weights(s, at_rows, tl.load(scale + columns)[None, :], UNSHIFTED)
        total = tl.dot(weights.to(v.dtype.element_ty), b, total, input_precision="tf32x3")
    offsets = (split.to(tl.int64) * count + local)[:, None] * D + dims[None, :]
    tl.store(out + offsets, total, mask=(local < count)[:, None] & (dims < D)[None, :])


@triton.jit
def _weights(s, at_rows, at_columns, UNSHIFTED: tl.constexpr):  # type: ignore[no-untyped-def]
    if UNSHIFTED:
        return tl.exp2(s) * (at_rows + at_columns)
    else:
        return tl.exp2(s - at_rows) + tl.exp2(s - at_columns)
