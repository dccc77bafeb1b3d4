"""Augmentations against torchvision.transforms.v2, given the same parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from cltt.config import PRESETS, Augment
from cltt.frames import augment
from cltt.frames.augment import random_numbers
from cltt.frames.filters import turn_hue
from tests.helpers.pictures import detailed

SIZE, COUNT = 96, 40
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
        Augment(jitter=(0, 0, 0, 0.1)),
        Augment(jitter=(0, 0, 0, 0.5)),
        Augment(jitter=(0, 0, 0, 0.5), grey=1.0),
        Augment(grey=1.0),
        Augment(blur=1.0),
    ],
    ids=str,
)
def test_each_change_is_torchvisions(asked: Augment) -> None:
    assert largest_difference(asked) < 2


def test_all_together_are_torchvisions_where_no_colour_is_clipped_in_between() -> None:
    asked = Augment(crop_area=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.2), grey=0.2, blur=0.5)
    assert largest_difference(asked, contrast=0.3) < 2


@pytest.mark.parametrize("turn", [-0.5, -0.4, -0.2, -0.05, 0.0, 1e-9, 0.1, 1 / 6, 0.25, 0.3, 0.45, 0.5])
def test_every_value_of_a_turned_hue_is_torchvisions(turn: float) -> None:
    """Of any colours, greys and the corners of RGB among them."""
    generator = np.random.default_rng(0)
    frame = generator.integers(0, 256, (90, 60, 3), dtype=np.uint8)
    frame[:20] = frame[:20, :, :1]
    frame[20:40] = generator.choice(np.array([0, 255], np.uint8), (20, 60, 3))
    wanted = functional.adjust_hue(torch.from_numpy(frame).permute(2, 0, 1) / 255, turn).permute(1, 2, 0) * 255
    turn_hue(frame, turn)
    assert np.abs(frame - wanted.numpy()).max() <= 0.51
