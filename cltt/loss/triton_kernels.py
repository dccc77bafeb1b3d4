"""Row log-sum-exps and gradients of the loss as Triton kernels.

The module ``chunked`` computes the same in plain torch.

Legend: N frames in all, D features per frame, T frames per window. A program computes BM rows and visits BN columns at
a time, tile by tile. ``v`` [N, D] holds unit rows divided by sqrt(temperature * NATS), so that v v^T are the logits in
base 2, log2(e) S. The kernels then use 2^x, for which a GPU has an instruction, instead of e^x.

Products take v as it is (bf16, fp16, or fp32 as three tf32 products) and accumulate in fp32; all else is fp32. As in
FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691), rows stay on chip and columns are streamed. Its backward
pass computes five products per tile. Here keys, queries and values are one matrix, so only one is needed beside S.

Most tiles hold no pair that must be hidden. Each kernel visits the tiles with hidden pairs first, with masks (tiles on
the diagonal, and the last one if it is not full), and the others in a second loop without masks.

If one process holds all rows, S is symmetric, and each tile off the diagonal is computed once, for its rows and for its
columns. Example with seven blocks of rows, and the tiles that each visits (d: diagonal, x: used twice):

    d x x x . . .      Block i visits the tiles i to i + 7 // 2, modulo 7, so every block visits equally many, and each
    . d x x x . .      unordered pair of blocks is visited once. (With an even number of blocks the last tile of a block
    . . d x x x .      is visited from both sides and used once by each.) All blocks visit a last tile that is not full.
    . . . d x x x
    x . . . d x x      These visits form one sequence, which is divided evenly over as many programs as run at a time.
    x x . . . d x      Each program sums in memory of its own. Memory is therefore linear in N, and the order of the
    x x x . . . d      sums is fixed, without atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(v, rows, end, dims, D: tl.constexpr, DB: tl.constexpr, CHECKED: tl.constexpr):  # type: ignore[no-untyped-def]
    """v[rows, dims], zero beyond row ``end`` (``CHECKED``) and column D.

    Offsets are 64-bit, as N * D may pass 2^31.
    """
    pointers = v + rows.to(tl.int64)[:, None] * D + dims[None, :]
    if CHECKED:
        values = tl.load(pointers, mask=(rows < end)[:, None] & (dims < D)[None, :], other=0.0)
    else:
        values = _load_whole(pointers, dims, D, DB)
    return values


@triton.jit
def _load_whole(pointers, dims, D: tl.constexpr, DB: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows that all exist, zero beyond column D."""
    if D % DB != 0:
        values = tl.load(pointers, mask=(dims < D)[None, :], other=0.0)
    else:
        values = tl.load(pointers)
    return values


@triton.jit
def _logits(  # type: ignore[no-untyped-def]
    v, a, rows, end, columns, N,
    D: tl.constexpr, DB: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    RESIDENT: tl.constexpr, CHECKED: tl.constexpr,
):  # fmt: skip
    """S[rows, columns], from resident rows ``a`` or DB features at a time."""
    if RESIDENT:
        b = _load(v, columns, N, tl.arange(0, DB), D, DB, CHECKED)
        s = tl.dot(a, tl.trans(b), input_precision="tf32x3")
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
    """Pairs in no denominator: beyond N, self, overlapping windows of one clip."""
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
    """First tile and size of the band of rows [row, row + BM), and the number of masked tiles.

    Masked are the tiles with the rows themselves as columns (with ``WINDOWS``: with all of their windows), and a last
    tile that is not full.
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
def _tiles_of(split, tiles_each, masked, N, BN: tl.constexpr, HAS_SPANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """First and end of the visits of a split, and the number of masked ones (with spans, all)."""
    tiles = (N + BN - 1) // BN
    if HAS_SPANS:
        masked = tiles
    begin = split * tiles_each
    return begin, tl.minimum(begin + tiles_each, tiles), masked


@triton.jit
def _masked_tile(place, lo, width, N, BN: tl.constexpr, HAS_SPANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile of a masked visit: first those of the band, then the last tile.

    With spans all tiles are masked, and visited in order.
    """
    tile = place
    if not HAS_SPANS:
        tile = tl.where(place < width, lo + place, N // BN)
    return tile


@triton.jit
def _clean_tile(place, lo, width, masked):  # type: ignore[no-untyped-def]
    """The tile of a visit without a mask; it skips the band."""
    tile = place - masked
    return tl.where(tile < lo, tile, tile + width)


@triton.jit
def _add(s, top, total, UNSHIFTED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add a tile to the running maximum and the running sum of 2^S of its rows."""
    raised = top
    if UNSHIFTED:
        total += tl.sum(tl.exp2(s), 1)
    else:
        raised = tl.maximum(top, tl.max(s, 1))
        shift = tl.where(raised == float("-inf"), 0.0, raised)  # -inf - -inf would be NaN
        total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(s - shift[:, None]), 1)
    return raised, total


@triton.jit
def row_kernel(  # type: ignore[no-untyped-def]
    v, spans, out, first, count, N, tiles_each, plane,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, UNSHIFTED: tl.constexpr, WITH_TOP1: tl.constexpr,
):  # fmt: skip
    """out[0, split, row] = log2-sum-exp2 over the columns of the split.

    out[1] and out[2]: the best positive and the best negative logit.
    """
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
    lo, width, masked = _band(first + tl.program_id(0) * BM, end, N, BM, BN, T, WITH_TOP1)
    begin, stop, masked = _tiles_of(split, tiles_each, masked, N, BN, HAS_SPANS)
    for place in range(begin, tl.minimum(stop, masked)):
        columns = _masked_tile(place, lo, width, N, BN, HAS_SPANS) * BN + tl.arange(0, BN)
        s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, RESIDENT, True)
        s = tl.where(_hidden(rows, columns, end, N, spans, T, HAS_SPANS), float("-inf"), s)
        if WITH_TOP1:
            same = (rows // T)[:, None] == (columns // T)[None, :]
            positive = tl.maximum(positive, tl.max(tl.where(same, s, float("-inf")), 1))
            negative = tl.maximum(negative, tl.max(tl.where(same, float("-inf"), s), 1))
        top, total = _add(s, top, total, UNSHIFTED)
    for place in range(tl.maximum(begin, masked), stop):
        columns = _clean_tile(place, lo, width, masked) * BN + tl.arange(0, BN)
        s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, RESIDENT, False)
        if WITH_TOP1:
            negative = tl.maximum(negative, tl.max(s, 1))
        top, total = _add(s, top, total, UNSHIFTED)
    lse = tl.log2(total) if UNSHIFTED else tl.where(top == float("-inf"), top + total * 0, top + tl.log2(total))
    target = out + split.to(tl.int64) * count + local
    tl.store(target, lse, mask=local < count)
    if WITH_TOP1:
        tl.store(target + plane, positive, mask=local < count)
        tl.store(target + 2 * tl.cast(plane, tl.int64), negative, mask=local < count)


@triton.jit
def _add_at(pointers, values, mask):  # type: ignore[no-untyped-def]
    tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + values, mask=mask)


@triton.jit
def _raise_at(pointers, values, mask):  # type: ignore[no-untyped-def]
    tl.store(pointers, tl.maximum(tl.load(pointers, mask=mask, other=0.0), values), mask=mask)


@triton.jit
def mirrored_kernel(  # type: ignore[no-untyped-def]
    v, spans, out, N, places, places_each, plane,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, WITH_TOP1: tl.constexpr,
):  # fmt: skip
    """out[0, program, frame] += sum of 2^S over the program's tiles.

    out[1] and out[2]: the best positive and the best negative logit.
    """
    full = N // BN
    ragged = tl.where(N % BN == 0, 0, 1)
    half = full // 2
    K = half + 1 + ragged
    masked = 1 + ragged
    if WITH_TOP1:
        masked = tl.minimum(K, masked + (T - 2) // BM + 1)
    if HAS_SPANS:
        masked = K
    mine = out + tl.program_id(0).to(tl.int64) * N
    wide = tl.cast(plane, tl.int64)
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
            if WITH_TOP1:
                same = (rows // T)[:, None] == (columns // T)[None, :]
                inside = tl.where(same, s, float("-inf"))
                outside = tl.where(same, float("-inf"), s)
                positive = tl.maximum(positive, tl.max(inside, 1))
                negative = tl.maximum(negative, tl.max(outside, 1))
                _raise_at(mine + wide + columns, tl.max(inside, 0), twice)
                _raise_at(mine + 2 * wide + columns, tl.max(outside, 0), twice)
        for place in range(tl.maximum(begin, masked), end):
            step = place - ragged
            tile = block + step
            columns = tl.where(tile >= full, tile - full, tile) * BN + tl.arange(0, BN)
            s = _logits(v, a, rows, N, columns, N, D, DB, BM, BN, RESIDENT, False)
            e = tl.exp2(s)
            total += tl.sum(e, 1)
            _add_at(mine + columns, tl.sum(e, 0), 2 * step != full)
            if WITH_TOP1:
                negative = tl.maximum(negative, tl.max(s, 1))
                _raise_at(mine + 2 * wide + columns, tl.max(s, 0), 2 * step != full)
        _add_at(mine + rows, total, rows < N)
        if WITH_TOP1:
            _raise_at(mine + wide + rows, positive, rows < N)
            _raise_at(mine + 2 * wide + rows, negative, rows < N)
        tl.debug_barrier()


@triton.jit
def _weights(s, at_rows, at_columns, UNSHIFTED: tl.constexpr):  # type: ignore[no-untyped-def]
    if UNSHIFTED:
        weights = tl.exp2(s) * (at_rows + at_columns)
    else:
        weights = tl.exp2(s - at_rows) + tl.exp2(s - at_columns)
    return weights


@triton.jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    v, spans, scale, out, first, count, N, tiles_each,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, DB: tl.constexpr, DC: tl.constexpr,
    RESIDENT: tl.constexpr, HAS_SPANS: tl.constexpr, UNSHIFTED: tl.constexpr,
):  # fmt: skip
    """out[split, row, chunk of D] = sum over j of (2^(S_ij - lse_i) + 2^(S_ij - lse_j)) v_j."""
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
    begin, stop, masked = _tiles_of(split, tiles_each, masked, N, BN, HAS_SPANS)
    for place in range(begin, tl.minimum(stop, masked)):
        columns = _masked_tile(place, lo, width, N, BN, HAS_SPANS) * BN + tl.arange(0, BN)
        b = _load(v, columns, N, dims, D, DC, True)
        if RESIDENT:
            s = tl.dot(a, tl.trans(b), input_precision="tf32x3")
        else:
            s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, False, True)
        at_columns = tl.load(scale + columns, mask=columns < N, other=0.0)[None, :]
        weights = _weights(s, at_rows, at_columns, UNSHIFTED)
        weights = tl.where(_hidden(rows, columns, end, N, spans, T, HAS_SPANS), 0.0, weights)
        total = tl.dot(weights.to(v.dtype.element_ty), b, total, input_precision="tf32x3")
    # Tiles are addressed from the first one: on 9.0, 15 instructions a turn fewer than from each row's number.
    first_tile = v + (tl.arange(0, BN)[:, None] * D + dims[None, :])
    for place in range(tl.maximum(begin, masked), stop):
        column = _clean_tile(place, lo, width, masked) * BN
        columns = column + tl.arange(0, BN)
        b = _load_whole(first_tile + column.to(tl.int64) * D, dims, D, DC)
        if RESIDENT:
            s = tl.dot(a, tl.trans(b), input_precision="tf32x3")
        else:
            s = _logits(v, a, rows, end, columns, N, D, DB, BM, BN, False, False)
        weights = _weights(s, at_rows, tl.load(scale + columns)[None, :], UNSHIFTED)
        total = tl.dot(weights.to(v.dtype.element_ty), b, total, input_precision="tf32x3")
    offsets = (split.to(tl.int64) * count + local)[:, None] * D + dims[None, :]
    tl.store(out + offsets, total, mask=(local < count)[:, None] & (dims < D)[None, :])
