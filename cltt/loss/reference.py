"""The loss in a few lines that hold the N x N matrix.

Tests compare the other backends with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

EPS = 1e-6  # a row is divided by max(length, EPS), in every backend


def positive_mask(B: int, T: int, device: torch.device | None = None) -> torch.Tensor:
    """The pairs of frames that are positives (same window, not self): bool [B*T, B*T].

    ``device``: where to make it; None: the CPU.

    ``positive_mask(2, 3)``::

        . 1 1 . . .
        1 . 1 . . .
        1 1 . . . .
        . . . . 1 1
        . . . 1 . 1
        . . . 1 1 .
    """
    window = torch.arange(B * T, device=device) // T
    return (window[:, None] == window) & ~torch.eye(B * T, dtype=torch.bool, device=device)


def reference_loss(
    z: torch.Tensor,
    temperature: float = 0.5,
    ignored: torch.Tensor | None = None,
    hard_negatives: float = 0.0,
    remembered: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss by its formula, with N x N matrices, as a scalar of z's dtype, at least fp32.

    Args:
        z: float [B, T, D].
        temperature: divides the cosine similarities.
        ignored: bool [N, N + M], pairs that are not in the denominators.
        hard_negatives: beta; see :mod:`cltt.loss.weighted`.
        remembered: [M, D] unit rows, additional negatives without a gradient.
    """
    v = unit_rows(z, temperature)
    columns = v if remembered is None else torch.cat([v, remembered.to(v.dtype) * temperature**-0.5])
    logits = v @ columns.T
    positive = F.pad(positive_mask(z.shape[0], z.shape[1], z.device), (0, len(columns) - len(v)))
    hidden = _hidden(len(v), len(columns), ignored, z.device)
    if hard_negatives == 0:
        denominator = logits.masked_fill(hidden, -torch.inf).logsumexp(1, keepdim=True)
    else:
        denominator = _with_hard_negatives(logits, positive, hidden, hard_negatives)[:, None]
    return -(logits - denominator)[positive].mean()


def _with_hard_negatives(
    logits: torch.Tensor, positive: torch.Tensor, hidden: torch.Tensor, beta: float
) -> torch.Tensor:
    """Log of each row's denominator, with negatives weighted by e^(beta s): [N]."""
    negative = ~(positive | hidden)
    number = negative.sum(1)
    negative |= (number == 0)[:, None]  # rows without negatives need finite sums; log(0) below removes them
    hard = ((1 + beta) * logits).masked_fill(~negative, -torch.inf).logsumexp(1)
    weight = (beta * logits).masked_fill(~negative, -torch.inf).logsumexp(1)
    positives = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
    return torch.logaddexp(positives, number.to(logits.dtype).log() + hard - weight)


@torch.no_grad()
def reference_accuracy(z: torch.Tensor, ignored: torch.Tensor | None = None) -> torch.Tensor:
    """Share of frames whose best positive is more similar than every negative."""
    v = unit_rows(z, 1.0)
    positive = positive_mask(z.shape[0], z.shape[1], z.device)
    visible = (v @ v.T).masked_fill(_hidden(len(v), len(v), ignored, z.device), -torch.inf)
    best_positive = visible.masked_fill(~positive, -torch.inf).amax(1)
    return (best_positive > visible.masked_fill(positive, -torch.inf).amax(1)).to(v.dtype).mean()


def _hidden(N: int, columns: int, ignored: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """The pairs that are in no denominator (self and ignored ones): bool [N, columns]."""
    itself = torch.eye(N, columns, dtype=torch.bool, device=device)
    return itself if ignored is None else itself | ignored


def working_dtype(z: torch.Tensor) -> torch.dtype:
    """fp64 for ``z`` in fp64, else fp32."""
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def unit_rows(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """z [B, T, D] -> v [B*T, D], rows of length temperature**-0.5; v v^T are the logits."""
    rows = z.to(working_dtype(z)).flatten(0, 1)
    return F.normalize(rows, dim=1, eps=EPS) * temperature**-0.5
