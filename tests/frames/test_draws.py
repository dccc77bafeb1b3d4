"""What augmentations draw, against torchvision's definitions written out, over 100,000 draws each."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from cltt.config import PRESETS
from cltt.frames import augment
from cltt.frames.augment import random_numbers

stats = pytest.importorskip("scipy.stats")
COUNT = 100_000
# Two samples of this size from one distribution differ by more once in a thousand tests.
CLOSE = 1.95 * math.sqrt(2 / COUNT)


def drawn(kind: str, size: tuple[int, int]) -> augment.Augmentation:
    ids = np.arange(COUNT)
    flat = {name: values.reshape(-1) for name, values in random_numbers(5, 0, ids, ids[:, None], "frame").items()}
    return augment.sample_params(PRESETS[kind], flat, np.tile(size, (COUNT, 1)))


def random_resized_crop(height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
    """Top, left, height, width as torchvision.transforms.RandomResizedCrop.get_params describes them."""
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.randint(0, height - h), generator.randint(0, width - w), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Kolmogorov and Smirnov's distance; ties count once, at their end, in both."""
    assert stats.ks_2samp(ours, theirs, method="asymp").statistic < CLOSE


@pytest.mark.parametrize("size", [(256, 341), (341, 256), (256, 256), (40, 200), (200, 40), (9, 12)])
def test_crops_are_drawn_as_torchvision_draws_them(size: tuple[int, int]) -> None:
    box = drawn("crop", size).box
    generator = random.Random(1)
    wanted = np.array([random_resized_crop(*size, generator) for _ in range(COUNT)])
    for column in range(4):
        assert_same_distribution(box[:, column], wanted[:, column])
    for values in (box, wanted):
        assert (values[:, :2] >= 0).all() and (values[:, :2] + values[:, 2:] <= size).all()
    area, wanted_area = (values[:, 2:].prod(axis=1) / math.prod(size) for values in (box, wanted))
    assert_same_distribution(area, wanted_area)
    assert abs(area.mean() - wanted_area.mean()) < 0.003
    assert_same_distribution(box[:, 3] / box[:, 2], wanted[:, 3] / wanted[:, 2])
    centre = box[:, :2] + box[:, 2:] / 2, wanted[:, :2] + wanted[:, 2:] / 2
    assert_same_distribution(centre[0][:, 0], centre[1][:, 0])


def test_a_frame_that_no_crop_fits_is_cut_at_its_centre() -> None:
    for size, expected in (((20, 400), (0, 186, 20, 27)), ((400, 20), (186, 0, 27, 20)), ((1, 1), (0, 0, 1, 1))):
        box = drawn("crop", size).box
        share = (box == expected).all(axis=1).mean()
        assert share == 1 if size == (1, 1) else share > 0.5, (size, share)


def test_the_rest_of_the_recipe() -> None:
    """RandomHorizontalFlip(0.5); RandomApply([ColorJitter(.8, .8, .8, .2)], 0.8); RandomGrayscale(0.2); blur at 0.5."""
    ids = np.arange(COUNT)
    flat = {name: values.reshape(-1) for name, values in random_numbers(5, 0, ids, ids[:, None], "frame").items()}
    done = drawn("simclr", (256, 341))
    three_sigma = 3 * 0.5 / math.sqrt(COUNT)
    assert abs(done.flip.mean() - 0.5) < three_sigma
    assert abs((done.sigma > 0).mean() - 0.5) < three_sigma
    sigma = done.sigma[done.sigma > 0]
    assert stats.kstest(sigma, "uniform", (0.1, 1.9)).statistic < 1.95 / math.sqrt(len(sigma))
    matrix, of_mean = done.colour[:, :, :3].astype(float), done.colour[:, :, 3].astype(float)
    grey = (np.abs(matrix[:, 0] - matrix[:, 1]).max(axis=1) < 1e-6) | done.grey
    assert abs(grey.mean() - 0.2) < three_sigma
    jittered = flat["jitter"] < 0.8
    assert abs(jittered.mean() - 0.8) < three_sigma
    # A grey pixel of value x in a crop of mean m becomes b (c x + (1 - c) m): saturation leaves it grey.
    slope, rest = matrix.sum(axis=2).mean(axis=1), of_mean.mean(axis=1)
    brightness, contrast = slope + rest, slope / (slope + rest)
    assert (np.abs(brightness[~jittered] - 1) < 1e-5).all() and (np.abs(contrast[~jittered] - 1) < 1e-5).all()
    assert (done.hue[~jittered] == 0).all()
    assert stats.kstest(done.hue[jittered], "uniform", (-0.2, 0.4)).statistic < 1.95 / math.sqrt(jittered.sum())
    for factor in (brightness[jittered], contrast[jittered]):
        assert stats.kstest(factor, "uniform", (0.2, 1.6)).statistic < 1.95 / math.sqrt(len(factor))


@pytest.mark.parametrize("factor", [0.2, 0.5, 1.0, 1.8])
def test_contrast_turns_about_the_mean_grey_of_the_crop(factor: float) -> None:
    """As torchvision's adjust_contrast: a blend with the mean of the grey image."""
    frame = np.random.default_rng(0).integers(60, 200, (32, 32, 3), dtype=np.uint8)
    colour = np.zeros((1, 3, 4), np.float32)
    colour[0, :, :3], colour[0, :, 3] = np.eye(3) * factor, 1 - factor
    whole, no, none = np.array([[0, 0, 32, 32]]), np.array([False]), np.zeros(1, np.float32)
    drawn = augment.Augmentation(whole, no, colour, none, no, none)
    out = np.empty((32, 32, 3), np.uint8)
    augment.augment(frame, drawn, 0, out)
    mean = (frame @ [0.299, 0.587, 0.114]).mean()
    wanted = np.clip(factor * frame + (1 - factor) * mean, 0, 255)
    assert np.abs(out - wanted).max() <= 0.51
