"""What can be told without learning: encoders with no weights, held to the same evaluation as the trained one.

Both take frames [n, 3, S, S] with values 0..1 and give one row of features a frame.
"""

from __future__ import annotations

import torch
from torch import nn

LEVELS = 6  # bins of each channel: 216 colours


class ColourHistogram(nn.Module):
    """Square roots of the shares of 216 colours, of the whole frame or of its central quarter -> [n, 216].

    By cosine, such rows are compared by their Bhattacharyya coefficient, the usual measure for histograms.
    """

    def __init__(self, *, centre: bool) -> None:
        super().__init__()
        self.centre = centre

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        if self.centre:
            margin = frames.shape[-1] // 4
            frames = frames[..., margin:-margin, margin:-margin]
        levels = (frames * LEVELS).long().clamp(0, LEVELS - 1).flatten(2)
        colours = (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]
        counts = torch.zeros(len(frames), LEVELS**3).scatter_add_(1, colours, torch.ones(colours.shape))
        return (counts / colours.shape[1]).sqrt()


class RawPixels(nn.Module):
    """The pixels that the network sees, each channel less its mean over the frame -> [n, 3 * S * S].

    Less its mean, or by cosine every frame would be like every other.
    """

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return (frames - frames.mean((2, 3), keepdim=True)).flatten(1)
