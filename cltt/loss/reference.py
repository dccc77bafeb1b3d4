"""The loss as a dozen obvious lines that hold N x N numbers: what the fused forms are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F

EPS = 1e-6  # a row is divided by max(length, EPS), in every backend


def positive_mask(B: int, T: int, device: torch.device | None = None) -> torch.Tensor:
    """Which pairs of frames are positives: same window, not self -> bool [B*T, B*T] on ``device`` (None: the CPU).

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


def reference_loss(z: torch.Tensor, temperature: float = 0.5, ignored: torch.Tensor | None = None) -> torch.Tensor:
    """The formula as it stands, N x N matrices and all: what every other backend is held to.

    Args:
        z: float [B, T, D].
        temperature: divides the cosine similarities.
        ignored: bool [N, N], pairs that are left out of the denominators.

    Returns a scalar of z's dtype, at least fp32.
    """
    v = unit_rows(z, temperature)
    logits = v @ v.T
    positive = positive_mask(z.shape[0], z.shape[1], z.device)
    visible = logits.masked_fill(_hidden(len(v), ignored, z.device), -torch.inf)
    return -(logits - visible.logsumexp(1, keepdim=True))[positive].mean()


@torch.no_grad()
def reference_accuracy(z: torch.Tensor, ignored: torch.Tensor | None = None) -> torch.Tensor:
    """Share of frames whose best positive is more similar than every negative -> scalar; arguments as above."""
    v = unit_rows(z, 1.0)
    positive = positive_mask(z.shape[0], z.shape[1], z.device)
    visible = (v @ v.T).masked_fill(_hidden(len(v), ignored, z.device), -torch.inf)
    best_positive = visible.masked_fill(~positive, -torch.inf).amax(1)
    return (best_positive > visible.masked_fill(positive, -torch.inf).amax(1)).to(v.dtype).mean()


def _hidden(N: int, ignored: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """The pairs that are in no denominator: self and what is ignored -> bool [N, N]."""
    itself = torch.eye(N, dtype=torch.bool, device=device)
    return itself if ignored is None else itself | ignored


def working_dtype(z: torch.Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def unit_rows(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """z [B, T, D] -> v [B*T, D] with rows of length temperature**-0.5, so that v v^T are the logits."""
    rows = z.to(working_dtype(z)).flatten(0, 1)
    return F.normalize(rows, dim=1, eps=EPS) * temperature**-0.5
