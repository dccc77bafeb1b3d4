"""Row log-sum-exps and gradients of the loss in plain torch, tile by tile.

Legend: N frames in all, D features per frame, T frames per window, R x C one tile.
``v`` [N, D] holds unit rows divided by sqrt(temperature), so the logits are S = v v^T and |S| <= 1/temperature.

S is symmetric. If one process holds all rows, each tile right of the diagonal is used twice, as it is and transposed:

    d x x x      d  tile on the diagonal, used once
    . d x x      x  used for its rows and, transposed, for its columns
    . . d x      .  never computed
    . . . d
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

NATS = 1.0  # the logits are those of the loss, in base e
# Side of a tile. 512 x 512 in fp32 is 1 MiB, which fits the second-level cache of a CPU core. A GPU needs few, large
# launches instead (256 MiB).
_TILE_SIDE = {"cpu": 512, "cuda": 8192}
# exp(S) is summed without a shift as long as exp(2 * max_abs_logit) times any N is far from overflow (1e38 and 1e308).
_UNSHIFTED_BOUND = {torch.float32: 40.0, torch.float64: 300.0}


@dataclass(frozen=True)
class Rows:
    """The rows of the N x N logits that this rank computes.

    Attributes:
        window_size: T; rows w*T to (w+1)*T - 1 are the frames of window w.
        first, count: index of the first row and number of rows, both multiples of T.
        max_abs_logit: upper bound of |S|, which is 1/temperature.
        spans: int64 [N/T, 3], per window: clip, first frame, last frame plus the gap. The remembered windows follow,
            if there are any. None: no pair is ignored.
    """

    window_size: int
    first: int
    count: int
    max_abs_logit: float
    spans: torch.Tensor | None

    def unshifted(self, dtype: torch.dtype) -> bool:
        """Whether sums of exp(S) need no running maximum in this dtype."""
        return self.max_abs_logit <= _UNSHIFTED_BOUND.get(dtype, 0.0)


@dataclass(frozen=True)
class Tile:
    """``logits`` [R, C] of the global ``rows`` and ``columns``.

    ``mirrored``: its transpose is used, too.
    """

    logits: torch.Tensor
    rows: slice
    columns: slice
    mirrored: bool


def row_logsumexp(v: torch.Tensor, rows: Rows, *, with_top1: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-sum-exp of each row, and whether its most similar other frame is a positive.

    Args:
        v: fp32 or fp64 [N, D].
        rows: the rows to compute.
        with_top1: also compute the second result.

    Returns:
        lse [rows.count] of v's dtype, and top1_correct (bool [rows.count], or None).
    """
    unshifted = rows.unshifted(v.dtype)
    total = v.new_full((len(v),), 0.0 if unshifted else -torch.inf)
    best = _Best(v) if with_top1 else None
    for tile in tiles(v, rows):
        _hide(tile, rows)
        if best is not None:
            best.update(tile, rows.window_size)
        if unshifted:
            _add_sums(total, tile)
        else:
            _add_logsumexps(total, tile)
    own = slice(rows.first, rows.first + rows.count)
    lse = total[own].log() if unshifted else total[own]
    return lse, None if best is None else (best.positive > best.negative)[own]


def grad_rows(v: torch.Tensor, lse: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Sum over j of (exp(S_ij - lse_i) + exp(S_ij - lse_j)) v_j per row i: [rows.count, D].

    Args:
        v: fp32 or fp64 [N, D].
        lse: log-sum-exp of all N rows, v's dtype.
        rows: the rows to compute.
    """
    unshifted = rows.unshifted(v.dtype)
    inverse = (-lse).exp() if unshifted else lse
    out = torch.zeros_like(v)
    for tile in tiles(v, rows):
        _hide(tile, rows)
        at_rows, at_columns = inverse[tile.rows, None], inverse[tile.columns]
        if unshifted:
            weights = tile.logits.exp_().mul_(at_rows + at_columns)
        else:
            weights = (tile.logits - at_rows).exp_().add_((tile.logits - at_columns).exp_())
        out[tile.rows].addmm_(weights, v[tile.columns])
        if tile.mirrored:
            out[tile.columns].addmm_(weights.T, v[tile.rows])
    return out[rows.first : rows.first + rows.count]


def tiles(v: torch.Tensor, rows: Rows, columns: torch.Tensor | None = None) -> Iterator[Tile]:
    """The tiles that cover ``rows``, one by one, in the same memory.

    Their bounds are multiples of T. ``columns`` [M, D]: the logits are v columns^T, and no tile is mirrored.
    """
    alone = columns is None and rows.count == len(v)  # then tiles left of the diagonal are mirrored, not computed
    columns = v if columns is None else columns
    total = len(columns)
    side = max(1, _TILE_SIDE.get(v.device.type, 512) // rows.window_size) * rows.window_size
    buffer = v.new_empty(min(side, rows.count) * min(side, total))
    end = rows.first + rows.count
    for top in range(rows.first, end, side):
        bottom = min(top + side, end)
        for left in range(top if alone else 0, total, side):
            right = min(left + side, total)
            logits = buffer[: (bottom - top) * (right - left)].view(bottom - top, right - left)
            torch.mm(v[top:bottom], columns[left:right].T, out=logits)
            yield Tile(logits, slice(top, bottom), slice(left, right), alone and left > top)


def _hide(tile: Tile, rows: Rows) -> None:
    """Set pairs in no denominator to -inf: self, and overlapping windows of one clip."""
    tile.logits.diagonal(tile.rows.start - tile.columns.start).fill_(-torch.inf)
    if rows.spans is None:
        return
    size = rows.window_size
    spans = rows.spans
    windows = [spans[part.start // size : part.stop // size] for part in (tile.rows, tile.columns)]
    ignored = overlapping(*windows)
    ignored.diagonal((tile.rows.start - tile.columns.start) // size).fill_(False)
    _by_window(tile, size).masked_fill_(ignored[:, None, :, None], -torch.inf)


def overlapping(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether spans ``a`` [n, 3] and ``b`` [m, 3] overlap in one clip: bool [n, m]."""
    a = a[:, None]
    return (a[..., 0] == b[:, 0]) & (a[..., 1] <= b[:, 2]) & (b[:, 1] <= a[..., 2])


def _by_window(tile: Tile, size: int) -> torch.Tensor:
    """The logits as a view [row windows, T, column windows, T]."""
    r, c = tile.logits.shape
    return tile.logits.view(r // size, size, c // size, size)


def _add_sums(total: torch.Tensor, tile: Tile) -> None:
    exponentials = tile.logits.exp_()
    total[tile.rows] += exponentials.sum(1)
    if tile.mirrored:
        total[tile.columns] += exponentials.sum(0)


def _add_logsumexps(total: torch.Tensor, tile: Tile) -> None:
    total[tile.rows] = torch.logaddexp(total[tile.rows], tile.logits.logsumexp(1))
    if tile.mirrored:
        total[tile.columns] = torch.logaddexp(total[tile.columns], tile.logits.logsumexp(0))


class _Best:
    """The highest positive and the highest negative logit of each row so far."""

    def __init__(self, v: torch.Tensor) -> None:
        self.positive = v.new_full((len(v),), -torch.inf)
        self.negative = v.new_full((len(v),), -torch.inf)

    def update(self, tile: Tile, size: int) -> None:
        # [T, T, k]: the logits within the k windows whose rows and columns are both in this tile
        blocks = _by_window(tile, size).diagonal((tile.rows.start - tile.columns.start) // size, 0, 2)
        kept = blocks.clone()
        blocks.fill_(-torch.inf)
        self._raise(self.negative, tile.rows, tile.logits.amax(1))
        if tile.mirrored:
            self._raise(self.negative, tile.columns, tile.logits.amax(0))
        blocks.copy_(kept)
        if kept.shape[2]:
            first = max(tile.rows.start, tile.columns.start)
            self._raise(self.positive, slice(first, first + kept.shape[2] * size), kept.amax(1).T.flatten())

    @staticmethod
    def _raise(best: torch.Tensor, part: slice, values: torch.Tensor) -> None:
        torch.maximum(best[part], values, out=best[part])
