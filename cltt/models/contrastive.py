"""The network that is trained: an encoder with a projection head, over windows."""

from __future__ import annotations

import torch
from torch import nn


class ProjectionHead(nn.Sequential):
    """Linear, BatchNorm, ReLU, Linear: [n, in_dim] -> [n, out_dim] (the head of SimCLR, arXiv:2002.05709)."""

    def __init__(self, in_dim: int, out_dim: int = 128) -> None:
        super().__init__(
            nn.Linear(in_dim, in_dim, bias=False),  # the bias would be taken out again by BatchNorm
            nn.BatchNorm1d(in_dim),
            nn.ReLU(inplace=True),
            nn.Linear(in_dim, out_dim),
        )


class ContrastiveModel(nn.Module):
    """Encoder and projection head over windows: [B, T, C, H, W] -> embeddings [B, T, D]."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        b, t = frames.shape[:2]
        return self.head(self.encoder(frames.flatten(0, 1))).unflatten(0, (b, t))
