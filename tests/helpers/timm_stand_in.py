"""In place of timm, where it is not installed: the part of its interface that is used, with networks of a few weights.

``vit_small``: learnt places, frames of every size where asked for, no decay of places. ``convnext_small``: knows
nothing of sizes, and ends with a norm whose name looks like a classifier's. ``vit_fixed_small``: 32 pixels alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__version__ = "0"
SIDE, WIDTH, PATCH = 32, 12, 8


class Transformer(nn.Module):
    num_features = head_hidden_size = WIDTH

    def __init__(self, any_size: bool) -> None:
        super().__init__()
        self.any_size = any_size
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.pos_embed = nn.Parameter(torch.randn(1, WIDTH, SIDE // PATCH, SIDE // PATCH) * 0.02)
        self.norm = nn.LayerNorm(WIDTH)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.any_size or x.shape[-1] == SIDE, f"Input height ({x.shape[-1]}) doesn't match model ({SIDE})."
        tokens = self.patch_embed(x)
        return self.norm((tokens + F.interpolate(self.pos_embed, tokens.shape[-2:])).mean((2, 3)))


class Head(nn.Module):
    """A norm below ``head.``, which is no classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)


class Convolutions(nn.Module):
    num_features, head_hidden_size = 8, WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.bn = nn.BatchNorm2d(8)
        self.conv_head = nn.Conv2d(8, WIDTH, 1)
        self.head = Head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head.norm(self.conv_head(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


def is_model(name: str) -> bool:
    return name in ("vit_small", "convnext_small", "vit_fixed_small")


def create_model(name: str, pretrained: bool = False, num_classes: int = 1000, **options: Any) -> nn.Module:
    assert not pretrained and num_classes == 0
    if name == "convnext_small":
        if options:
            raise TypeError(f"__init__() got an unexpected keyword argument {next(iter(options))!r}")
        return Convolutions()
    return Transformer(any_size=name == "vit_small" and options.get("dynamic_img_size", False))
