"""Swin: its windows against attention over the whole map with an explicit mask, and images of any size."""

from __future__ import annotations

import pytest
import torch

from cltt.models import swin


def reach(H: int, W: int, shift: int) -> torch.Tensor:
    """Which tokens of a map may look at which, one by one: those of one (shifted) window -> bool [H*W, H*W]."""

    def window(side: int, length: int) -> int:
        return (side + swin.WINDOW - shift) // swin.WINDOW if shift and length > swin.WINDOW else side // swin.WINDOW

    place = [(row, column) for row in range(H) for column in range(W)]
    label = [(window(row, H), window(column, W)) for row, column in place]
    return torch.tensor([[a == b for b in label] for a in label])


def obvious_attention(layer: swin.WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """The layer over the whole map at once: every pair of tokens, those out of reach masked; sides divisible by M."""
    n, H, W, C = x.shape
    place = torch.stack(torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")).flatten(1)
    apart = place[:, :, None] - place[:, None, :]  # [2, H*W, H*W]
    seen = reach(H, W, layer.shift)
    row = (apart + swin.WINDOW - 1).clamp(0, 2 * swin.WINDOW - 2)
    bias = layer.relative_position_bias_table[row[0] * (2 * swin.WINDOW - 1) + row[1]].permute(2, 0, 1)
    q, k, v = layer.qkv(x).reshape(n, H * W, 3, layer.heads, C // layer.heads).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-2, -1) / (C // layer.heads) ** 0.5 + bias
    mixed = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    return layer.proj(mixed.transpose(1, 2).reshape(n, H, W, C))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("sides", [(7, 7), (14, 7), (7, 21), (14, 14), (21, 14)])
def test_attention_stays_within_its_windows(sides: tuple[int, int], shifted: bool) -> None:
    torch.manual_seed(0)
    layer = swin.WindowAttention(12, 3, shifted).double()
    x = torch.randn(2, *sides, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), obvious_attention(layer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(32, 32), (37, 61), (64, 96), (112, 112)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = swin.Swin(24, (2, 2, 2, 2), (1, 2, 4, 8), 0.2).eval()
    features = encoder(torch.randn(2, 3, *size))
    assert features.shape == (2, encoder.feature_dim) and encoder.feature_dim == 192
    assert torch.isfinite(features).all()


def test_stochastic_depth_leaves_images_out_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = swin.StochasticDepth(0.25)
    x = torch.ones(20_000, 2)
    out = layer(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out[:, 0] == out[:, 1]).all() and out.mean().item() == pytest.approx(1, abs=0.02)
    assert layer.eval()(x) is x


@pytest.mark.parametrize(("build", "parameters"), [(swin.swin_t, 28_288_354), (swin.swin_s, 49_606_258)])
def test_number_of_parameters_is_torchvisions(build: object, parameters: int) -> None:
    """torchvision documents these counts with its classifier of 1,000 classes."""
    encoder = build()  # type: ignore[operator]
    classifier = 1000 * (encoder.feature_dim + 1)
    assert sum(p.numel() for p in encoder.parameters()) + classifier == parameters
