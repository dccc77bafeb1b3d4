"""Row sums and gradients of the loss with hard negatives, remembered windows or both.

The denominator of an anchor with logits s over its positives and its n negatives (without ignored pairs) is

    D = sum over positives of e^s  +  H,      H = n * A / W,
    A = sum over negatives of e^((1 + beta) s),      W = sum over negatives of e^(beta s),

Similar negatives count more (Robinson et al. 2021, https://arxiv.org/abs/2010.04592, with importance weights
e^(beta s)); beta = 0 is the plain sum. The gradient includes that of the weights:

    d log D / ds = e^s / D                                                       at a positive
                 = H / D * ((1 + beta) e^((1 + beta) s) / A  -  beta e^(beta s) / W)      at a negative.

Remembered windows are additional columns: negatives without a gradient of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cltt.loss.chunked import Rows, overlapping, tiles


@dataclass(frozen=True)
class Weighted:
    """Computes the sums tile by tile in plain torch, with the interface of ``chunked``.

    Attributes:
        beta: exponent of the weights of negatives, 0 or more.
        remembered: [M*T, D] rows of the remembered windows, scaled as ``v``; M may be 0. ``rows.spans`` then has M
            additional rows.
    """

    beta: float
    remembered: torch.Tensor
    NATS = 1.0  # the logits are those of the loss, in base e

    def row_logsumexp(
        self, v: torch.Tensor, rows: Rows, *, with_top1: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Three numbers per row [rows.count, 3], and whether its most similar frame is a positive.

        The first number is log D. The gradient at a negative subtracts the second from (1 + beta) s and the third from
        beta s before it takes the exponentials.
        """
        size = rows.window_size
        own = v[rows.first : rows.first + rows.count]
        positives = _positive_logits(own, size)
        hard, weight = (v.new_full((rows.count,), -torch.inf) for _ in range(2))
        best = v.new_full((rows.count,), -torch.inf)
        number = torch.zeros(rows.count // size, dtype=torch.int64, device=v.device)
        for tile in self._negatives(v, rows):
            part = tile.rows
            hard[part] = torch.logaddexp(hard[part], tile.scaled(1 + self.beta).logsumexp(1))
            weight[part] = torch.logaddexp(weight[part], tile.scaled(self.beta).logsumexp(1))
            number[part.start // size : part.stop // size] += (~tile.hidden).sum(1) * size
            if with_top1 and tile.columns.start < len(v):
                of_batch = tile.scaled(1.0)[:, : len(v) - tile.columns.start]
                best[part] = torch.maximum(best[part], of_batch.amax(1))
        log_n = number.to(v.dtype).log().repeat_interleave(size)
        log_h = torch.where(log_n.isinf(), log_n, log_n + hard - weight)  # without negatives: log 0
        log_d = torch.logaddexp(positives.logsumexp(-1).flatten(), log_h)
        share = log_h - log_d
        top1_correct = positives.amax(-1).flatten() > best if with_top1 else None
        return torch.stack([log_d, hard - share, weight - share], 1), top1_correct

    def grad_rows(self, v: torch.Tensor, stats: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Sum over j of (d log D_i / ds_ij + d log D_j / ds_ij) v_j per row i: [rows.count, D].

        ``stats``: the numbers of :meth:`row_logsumexp` for all N rows.
        """
        size, own = rows.window_size, slice(rows.first, rows.first + rows.count)
        log_d = stats[own, 0].view(-1, size)
        positives = _positive_logits(v[own], size)
        weights = (positives - log_d[:, :, None]).exp_() + (positives - log_d[:, None, :]).exp_()
        out = (weights @ v[own].view(-1, size, v.shape[1])).flatten(0, 1)
        columns = torch.cat([v, self.remembered])
        for tile in self._negatives(v, rows):
            at_rows = stats[own][tile.rows]
            weights = self._slope(tile.logits, at_rows[:, 1, None], at_rows[:, 2, None])
            of_batch = max(0, min(tile.columns.stop, len(v)) - tile.columns.start)
            if of_batch:  # a remembered frame is not an anchor, so it has no denominator
                at_columns = stats[tile.columns.start : tile.columns.start + of_batch]
                weights[:, :of_batch] += self._slope(tile.logits[:, :of_batch], at_columns[:, 1], at_columns[:, 2])
            tile.by_window(weights).masked_fill_(tile.hidden[:, None, :, None], 0)
            out[tile.rows].addmm_(weights, columns[tile.columns])
        return out

    def _slope(self, logits: torch.Tensor, hard: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        slope = ((1 + self.beta) * logits - hard).exp_().mul_(1 + self.beta)
        return slope.sub_((self.beta * logits - weight).exp_(), alpha=self.beta) if self.beta else slope

    def _negatives(self, v: torch.Tensor, rows: Rows) -> Iterator[_Tile]:
        """The tiles of this rank's rows with all columns.

        ``rows`` of a tile count from the rank's first row.
        """
        size = rows.window_size
        for tile in tiles(v, rows, torch.cat([v, self.remembered])):
            windows, others = (
                torch.arange(part.start // size, part.stop // size, device=v.device)
                for part in (tile.rows, tile.columns)
            )
            hidden = windows[:, None] == others
            if rows.spans is not None:
                hidden |= overlapping(rows.spans[windows], rows.spans[others])
            own = slice(tile.rows.start - rows.first, tile.rows.stop - rows.first)
            yield _Tile(tile.logits, hidden, own, tile.columns, size)


@dataclass(frozen=True)
class _Tile:
    """``logits`` [R, C] of rows and columns.

    ``hidden`` [R/T, C/T]: pairs of windows that are not negatives.
    """

    logits: torch.Tensor
    hidden: torch.Tensor
    rows: slice
    columns: slice
    size: int

    def by_window(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix [R, C] as a view [row windows, T, column windows, T]."""
        return matrix.view(len(self.hidden), self.size, -1, self.size)

    def scaled(self, power: float) -> torch.Tensor:
        """power * logits, with -inf for pairs that are not negatives."""
        scaled = self.logits * power
        self.by_window(scaled).masked_fill_(self.hidden[:, None, :, None], -torch.inf)
        return scaled


def _positive_logits(own: torch.Tensor, size: int) -> torch.Tensor:
    """Logits of each frame with the frames of its window, -inf with itself: [windows, T, T]."""
    windows = own.view(-1, size, own.shape[1])
    logits = windows @ windows.mT
    logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return logits
