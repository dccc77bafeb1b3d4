"""Augmentations against torchvision.transforms.v2, given the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from cltt.config import PRESETS, Augment
from cltt.frames import augment
from cltt.frames.augment import random_numbers
from tests.helpers.pictures import detailed

SIZE, COUNT = 96, 40
# Hue's number is drawn as an angle of YIQ's plane, which counts against torchvision's.
JITTERED = ("brightness", "contrast", "saturation")


def theirs(frame: np.ndarray, asked: Augment, box: list[int], draw: dict[str, float]) -> np.ndarray:
    """``frame`` by torchvision: the crop ``box``, flip, the four parts of ColorJitter, grey and blur."""
    image = torch.from_numpy(frame).permute(2, 0, 1) / 255  # of bytes torchvision rounds down after each change
    image = functional.resized_crop(image, *box, [SIZE, SIZE], antialias=True)
    if draw["flip"] < asked.flip:
        image = functional.horizontal_flip(image)
    if draw["jitter"] < 0.8:
        for name, most in zip(JITTERED, asked.jitter, strict=False):
            image = getattr(functional, f"adjust_{name}")(image, 1 + (2 * draw[name] - 1) * most)
        image = functional.adjust_hue(image, (1 - 2 * draw["hue"]) * asked.jitter[3])
    if draw["grey"] < asked.grey:
        image = functional.rgb_to_grayscale(image, 3)
    if draw["blur"] < asked.blur:
        sigma = 0.1 + 1.9 * draw["sigma"]
        image = functional.gaussian_blur(image, [augment.blur_window(SIZE)] * 2, [sigma] * 2)
    return image.permute(1, 2, 0).numpy() * 255


def largest_difference(asked: Augment, contrast: float = 1.0) -> float:
    """Of some pictures, by the mean over a picture, of 255; ``contrast``: the share that is left of theirs."""
    frames = [np.rint(128 + contrast * (detailed(120, 160, k) - 128.0)).astype(np.uint8) for k in range(COUNT)]
    ids = np.arange(COUNT)
    numbers = {name: draws[:, 0] for name, draws in random_numbers(1, 0, ids, ids[:, None], "frame").items()}
    drawn = augment.sample_params(asked, numbers, np.tile((120, 160), (COUNT, 1)))
    ours, found = np.empty((SIZE, SIZE, 3), np.uint8), []
    for k, frame in enumerate(frames):
        augment.augment(frame, drawn, k, ours)
        draw = {name: float(draws[k]) for name, draws in numbers.items()}
        found.append(np.abs(ours - theirs(frame, asked, drawn.box[k].tolist(), draw)).mean())
    return max(found)


@pytest.mark.parametrize(
    "asked",
    [
        PRESETS["crop"],
        Augment(crop_area=(0.08, 0.4), flip=0.5),
        Augment(flip=1.0),
        Augment(jitter=(0.8, 0, 0, 0)),
        Augment(jitter=(0, 0.8, 0, 0)),
        Augment(jitter=(0, 0, 0.8, 0)),
        Augment(grey=1.0),
        Augment(blur=1.0),
    ],
    ids=str,
)
def test_each_change_is_torchvisions(asked: Augment) -> None:
    assert largest_difference(asked) < 2


def test_all_together_are_torchvisions_where_no_colour_is_clipped_in_between() -> None:
    asked = Augment(crop_area=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0), grey=0.2, blur=0.5)
    assert largest_difference(asked, contrast=0.3) < 2


@pytest.mark.parametrize("turn", [-0.2, -0.05, 0.1])
def test_hue_turns_as_far_as_torchvisions(turn: float) -> None:
    """In the plane of YIQ, where angles count the other way round, and not around HSV's hexagon."""
    colours = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    ours = torch.from_numpy(augment._hue_turns(np.array([-2 * np.pi * turn]))[0]).float()
    wanted = _hue(functional.adjust_hue(colours, turn))
    apart = (_hue(torch.einsum("ij,jhw->ihw", ours, colours)) - wanted + 0.5).remainder(1) - 0.5
    assert apart.abs().mean() < 0.05 and abs(apart.mean()) < 0.02


def _hue(image: torch.Tensor) -> torch.Tensor:
    """In turns, [h, w]."""
    red, green, blue = image
    return torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * torch.pi)
