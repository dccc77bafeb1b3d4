"""The baselines against obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cltt.demo.baselines import LEVELS, ColourHistogram, RawPixels

FRAMES = torch.from_numpy(np.random.default_rng(0).uniform(0, 1, (3, 3, 16, 16))).float()


def counted(frame: np.ndarray) -> np.ndarray:
    """Shares of the colours of one frame [3, h, w], pixel by pixel."""
    counts = np.zeros((LEVELS,) * 3)
    for pixel in frame.reshape(3, -1).T:
        counts[tuple(min(int(value * LEVELS), LEVELS - 1) for value in pixel)] += 1
    return counts.ravel() / counts.sum()


@pytest.mark.parametrize("centre", [False, True])
def test_the_histogram_counts_colours(centre: bool) -> None:
    found = ColourHistogram(centre=centre)(FRAMES).numpy() ** 2
    part = FRAMES[..., 4:12, 4:12] if centre else FRAMES
    np.testing.assert_allclose(found, [counted(frame) for frame in part.double().numpy()], atol=1e-6)


def test_the_histogram_takes_both_ends_of_the_scale_and_forgets_places() -> None:
    frames = FRAMES.clone()
    frames[0], frames[1, :, :8], frames[1, :, 8:] = 1.0, 0.0, 1.0
    shown = ColourHistogram(centre=False)(frames)
    assert shown[0, -1] == 1 and shown[1, 0] == shown[1, -1]
    moved = frames.flip(2).transpose(2, 3)
    assert torch.equal(ColourHistogram(centre=False)(moved), shown)


def test_raw_pixels_know_places_but_not_brightness() -> None:
    pixels = RawPixels()(FRAMES)
    assert pixels.shape == (3, 3 * 16 * 16)
    torch.testing.assert_close(RawPixels()(FRAMES + 0.25), pixels)
    assert not torch.allclose(RawPixels()(FRAMES.flip(3)), pixels)
