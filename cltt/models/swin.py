"""Swin Transformers: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(arXiv:2103.14030).

Parameter names and shapes are torchvision's (``features.1.0.attn.qkv`` ...), so a saved encoder loads with
``strict=True`` into torchvision's model once its ``head`` is an ``Identity``. Weights are drawn as in the paper's code:
truncated normal of deviation 0.02, biases zero.

Legend: n images; H, W side lengths of the map of tokens; C channels; M side of a window in tokens; h heads; K windows.
Images of any size serve: a map that M does not divide is padded, one that has an odd side too, before it is merged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WINDOW = 7  # M
PATCH = 4  # side of a patch in pixels: one token each
MLP_RATIO = 4
OUT_OF_REACH = -100.0  # added to the logits of tokens that meet in a window by the cyclic shift alone


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.axes)


class StochasticDepth(nn.Module):
    """Leave a residual branch out for some of the images in training (Huang et al., arXiv:1603.09382)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.share == 0:
            return x
        kept = torch.empty(len(x), *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.share)
        return x * kept / (1 - self.share)


class WindowAttention(nn.Module):
    """Attention among the tokens of each window, with a learnt bias for their relative places.

    Args:
        width: C.
        heads: h.
        shifted: windows lie half a window further (where the map has more than one), so that neighbours meet.
    """

    relative_position_index: torch.Tensor  # [M*M * M*M]

    def __init__(self, width: int, heads: int, shifted: bool) -> None:
        super().__init__()
        self.heads = heads
        self.shift = WINDOW // 2 if shifted else 0
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_places())
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, H, W, C] -> the same shape."""
        n, H, W, C = x.shape
        x = F.pad(x, (0, 0, 0, -W % WINDOW, 0, -H % WINDOW))
        height, width = x.shape[1:3]
        # One window along an axis sees all of it: there is nothing to shift to.
        shift = [self.shift if side > WINDOW else 0 for side in (height, width)]
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        tokens = _windows(x)  # [n*K, M*M, C]
        q, k, v = self.qkv(tokens).reshape(-1, WINDOW**2, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        logits = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1) + self._bias()  # [n*K, h, M*M, M*M]
        if any(shift):
            apart = _apart(height, width, shift, x.device)  # [K, M*M, M*M]
            logits = (logits.unflatten(0, (n, -1)) + (apart * OUT_OF_REACH).to(logits.dtype)[:, None]).flatten(0, 1)
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)  # [n*K, M*M, C]
        x = _map(self.proj(mixed), n, height, width)
        if any(shift):
            x = x.roll((shift[0], shift[1]), (1, 2))
        return x[:, :H, :W]

    def _bias(self) -> torch.Tensor:
        """Bias of each pair of places in a window: [h, M*M, M*M]."""
        table = self.relative_position_bias_table[self.relative_position_index]
        return table.unflatten(0, (WINDOW**2, WINDOW**2)).permute(2, 0, 1)


def _relative_places() -> torch.Tensor:
    """Row of the bias table for each pair of places of a window: int64 [M*M * M*M]."""
    place = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")).flatten(1)
    apart = place[:, :, None] - place[:, None, :] + WINDOW - 1  # [2, M*M, M*M], each 0..2M-2
    return (apart[0] * (2 * WINDOW - 1) + apart[1]).flatten()


def _windows(x: torch.Tensor) -> torch.Tensor:
    """[n, H, W, C] -> [n*K, M*M, C], window by window."""
    n, H, W, C = x.shape
    x = x.reshape(n, H // WINDOW, WINDOW, W // WINDOW, WINDOW, C)
    return x.transpose(2, 3).reshape(-1, WINDOW**2, C)


def _map(tokens: torch.Tensor, n: int, H: int, W: int) -> torch.Tensor:
    """The inverse of :func:`_windows`."""
    x = tokens.reshape(n, H // WINDOW, W // WINDOW, WINDOW, WINDOW, -1)
    return x.transpose(2, 3).reshape(n, H, W, -1)


def _apart(H: int, W: int, shift: list[int], device: torch.device) -> torch.Tensor:
    """Pairs of a window's tokens that the cyclic shift has brought together from opposite sides: bool [K, M*M, M*M].

    Along a shifted axis the map falls into three strips; tokens of different strips are no neighbours::

        0 0 0 0 0 0 0 | 1 1 1 1 2 2 2     two windows of 7, shift 3: the second holds the last 4 and the first 3
    """
    rows, columns = (_strips(side, s, device) for side, s in zip((H, W), shift, strict=True))
    strip = (3 * rows[:, None] + columns)[None, :, :, None]
    labels = _windows(strip)[..., 0]  # [K, M*M]
    return labels[:, :, None] != labels[:, None, :]


def _strips(side: int, shift: int, device: torch.device) -> torch.Tensor:
    """Number of the strip, 0 to 2, of each place along an axis: int64 [side]."""
    place = torch.arange(side, device=device)
    return (place >= side - WINDOW).long() + (place >= side - shift).long() if shift else torch.zeros_like(place)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a shortcut: [n, H, W, C] -> the same shape."""

    def __init__(self, width: int, heads: int, shifted: bool, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = WindowAttention(width, heads, shifted)
        self.stochastic_depth = StochasticDepth(drop)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        hidden = MLP_RATIO * width
        # Identities where torchvision has dropout, so that the names are the same.
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width), nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        return x + self.stochastic_depth(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one of twice the width: [n, H, W, C] -> [n, ceil(H/2), ceil(W/2), 2C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Encoder: [n, 3, H, W] -> [n, feature_dim].

    Args:
        width: channels of the first stage; each later stage has twice those of the one before.
        depths, heads: blocks and attention heads of the four stages.
        drop: share of images that the last block leaves out in training; earlier ones fewer, falling to none.

    Attributes:
        feature_dim: length of the feature vector, eight times ``width``.
    """

    def __init__(
        self, width: int, depths: tuple[int, int, int, int], heads: tuple[int, int, int, int], drop: float
    ) -> None:
        super().__init__()
        embedding = nn.Sequential(nn.Conv2d(3, width, PATCH, PATCH), Permute(0, 2, 3, 1), nn.LayerNorm(width, eps=1e-5))
        # On the CPU also where the network is made without memory.
        drops = iter(torch.linspace(0, drop, sum(depths), device="cpu").tolist())
        stages: list[nn.Module] = [embedding]
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage:
                stages.append(PatchMerging(width << (stage - 1)))
            blocks = [Block(width << stage, count, place % 2 == 1, next(drops)) for place in range(depth)]
            stages.append(nn.Sequential(*blocks))
        self.feature_dim = width << (len(depths) - 1)
        self.features = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(self.feature_dim, eps=1e-5)
        self.head = nn.Identity()
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.features(x))  # [n, H, W, C]
        return self.head(x.mean((1, 2)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def swin_t() -> Swin:
    return Swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2)


def swin_s() -> Swin:
    return Swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3)


def swin_b() -> Swin:
    return Swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5)
