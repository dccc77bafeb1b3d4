"""The quick filters against OpenCV's exact ones."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cltt.frames.filters import HALF_SIGMA, gaussian, resize
from tests.helpers.pictures import detailed

Array = np.ndarray


def worst_and_mean(a: Array, b: Array) -> tuple[float, float]:
    difference = np.abs(a.astype(int) - b)
    return float(difference.max()), float(difference.mean())


@pytest.mark.parametrize("interpolation", [cv2.INTER_LINEAR, cv2.INTER_AREA])
@pytest.mark.parametrize("target", [(224, 224), (96, 96), (61, 97), (256, 341)])
@pytest.mark.parametrize("source", [(128, 128), (240, 240), (256, 256), (97, 180), (480, 480), (480, 853)])
def test_a_resize_is_within_one_level_of_opencvs_own(
    source: tuple[int, int], target: tuple[int, int], interpolation: int
) -> None:
    frame = detailed(*source, 0)
    part = frame[3:-2, 5:]  # not contiguous, as crops are
    found = np.empty((*target, 3), np.uint8)
    resize(part, found, interpolation)
    exact = cv2.resize(part, target[::-1], interpolation=interpolation)
    worst, mean = worst_and_mean(found, exact)
    assert worst <= 1 and mean < 0.2


@pytest.mark.parametrize("wanted", [False, True])
def test_the_callers_choice_of_kernels_is_put_back(wanted: bool) -> None:
    before = cv2.ipp.useIPP_NotExact()
    cv2.ipp.setUseIPP_NotExact(wanted)
    try:
        chosen = cv2.ipp.useIPP_NotExact()  # an OpenCV without Intel's kernels stays at False
        resize(np.zeros((8, 8, 3), np.uint8), np.empty((4, 4, 3), np.uint8), cv2.INTER_AREA)
        assert cv2.ipp.useIPP_NotExact() == chosen
        with pytest.raises(cv2.error):
            resize(np.zeros((8, 8, 3), np.uint8), np.empty((0, 4, 3), np.uint8), cv2.INTER_AREA)
        assert cv2.ipp.useIPP_NotExact() == chosen
    finally:
        cv2.ipp.setUseIPP_NotExact(before)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 1.79])
@pytest.mark.parametrize("size", [(20, 33), (224, 224)])
def test_a_blur_is_within_one_level_of_opencvs_own(size: tuple[int, int], sigma: float) -> None:
    frame = detailed(*size, 1)
    exact = cv2.GaussianBlur(frame, (13, 13), sigma)
    gaussian(frame, 13, sigma)
    worst, mean = worst_and_mean(frame, exact)
    assert worst <= 1 and mean < 0.1


@pytest.mark.parametrize(
    ("size", "taps", "sigma"), [((224, 224), 13, 2.0), ((257, 341), 31, 5.0), ((101, 77), 13, 1.8)]
)
def test_a_wide_blur_at_half_the_size_is_near_it(size: tuple[int, int], taps: int, sigma: float) -> None:
    assert sigma >= HALF_SIGMA
    frame = detailed(*size, 2)
    exact = cv2.GaussianBlur(frame, (taps, taps), sigma)
    gaussian(frame, taps, sigma)
    assert worst_and_mean(frame, exact)[1] < 0.5


@pytest.mark.parametrize("taps", [1, 3, 9])
def test_a_kernel_that_is_cut_off_is_not_widened(taps: int) -> None:
    """Of pictures of 96 pixels and less a tenth is narrower than six deviations."""
    frame = detailed(96, 96, 3)
    exact = cv2.GaussianBlur(frame, (taps, taps), 2.0)
    gaussian(frame, taps, 2.0)
    assert worst_and_mean(frame, exact)[0] <= 1
