"""The trained network: an encoder with a projection head, applied to the frames of windows."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class ProjectionHead(nn.Sequential):
    """Linear layers with BatchNorm and ReLU between them: [n, in_dim] -> [n, out_dim].

    Two layers are the head of SimCLR (arXiv:2002.05709), three that of SimCLR v2 (arXiv:2006.10029).

    Args:
        in_dim: features of the encoder.
        out_dim: length of the embeddings that the loss compares.
        hidden: width between the layers; None: ``in_dim``.
        layers: linear layers, 2 or more.
    """

    def __init__(self, in_dim: int, out_dim: int = 128, *, hidden: int | None = None, layers: int = 2) -> None:
        widths = [in_dim] + [hidden or in_dim] * (layers - 1)
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):  # no bias, as BatchNorm subtracts it again
            modules += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        super().__init__(*modules, nn.Linear(widths[-1], out_dim))


class ContrastiveModel(nn.Module):
    """Encoder and projection head over windows: [B, T, C, H, W] -> embeddings [B, T, D]."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        b, t = frames.shape[:2]
        return self.head(self.encoder(frames.flatten(0, 1))).unflatten(0, (b, t))
