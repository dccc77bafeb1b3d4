"""Augmentations: parameters drawn on the host, and the OpenCV twin of DALI's augment graph.

A parameter is a hash of (seed, epoch, window, frame), so it does not depend on rank, place in the batch, or where a run
was resumed. The preset ``simclr`` is SimCLR's recipe (Chen et al. 2020, arXiv:2002.05709, appendix A, strength 1), but
crops cover at least 0.2 of the frame, as in MoCo v2 (arXiv:2003.04297), not 0.08.

Crops are drawn by the rule of torchvision's RandomResizedCrop, and each change alone gives its pixels to within 2/255
(https://docs.pytorch.org/vision/stable/transforms.html). One thing differs: the colour changes come in one fixed order,
and brightness, contrast and saturation are one affine map of RGB whose values are clipped once, at its end, where
torchvision clips after each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import cv2
import numpy as np

from cltt.config import Augment
from cltt.frames.filters import gaussian, shrink, turn_hue
from cltt.sampling.permutation import GOLDEN, mix64

Array = np.ndarray
ASPECT = (3 / 4, 4 / 3)
COLOUR_SHARE = 0.8
SIGMA = (0.1, 2.0)  # in pixels
TRIES = 10  # to draw a crop that fits, before the centre is taken
LUMA = np.array([0.299, 0.587, 0.114])
TO_GREY = np.tile(LUMA, (3, 1))
_JITTERED = ("brightness", "contrast", "saturation")
_AREAS, _ASPECTS = ([f"{name}{k}" for k in range(TRIES)] for name in ("area", "aspect"))
_DRAWS = (*_AREAS, *_ASPECTS, "top", "left", "flip", "jitter", *_JITTERED, "hue", "grey", "blur", "sigma")


@dataclass(frozen=True)
class Augmentation:
    """What is done to n frames, in this order.

    Attributes:
        box: int64 [n, 4], top, left, height, width of the crop, which is resized to S x S.
        flip: bool [n], then mirrored left to right.
        colour: float32 [n, 3, 4], then mapped: rgb -> colour[:, :3] @ rgb + colour[:, 3] * m, clipped to 0..255; m is
            the mean of the crop's luma.
        hue: float32 [n], then turned by this share of a full turn in HSV, as torchvision's adjust_hue; 0: not turned.
        grey: bool [n], then made grey; False where ``hue`` is 0, for then ``colour`` does so.
        sigma: float32 [n], then blurred by a Gaussian of this deviation in pixels; 0: not blurred.
    """

    box: Array
    flip: Array
    colour: Array
    hue: Array
    grey: Array
    sigma: Array

    @cached_property
    def recolours(self) -> Array:
        """bool [n]: where ``colour`` changes anything."""
        changes: Array = (self.colour != np.eye(3, 4, dtype=np.float32)).any(axis=(1, 2))
        return changes


def blur_window(image_size: int) -> int:
    """Pixels of the Gaussian kernel: a tenth of the image, made odd."""
    return 2 * (image_size // 20) + 1


def random_numbers(seed: int, epoch: int, window_ids: Array, frame_ids: Array, scope: str) -> dict[str, Array]:
    """Numbers in [0, 1), float64 [b, T] for each draw; ``scope`` "window": all T frames of a window get the same."""
    key = _key(seed, epoch)
    frames = np.broadcast_to(window_ids[:, None], frame_ids.shape) if scope == "window" else frame_ids
    state = mix64(mix64(window_ids.astype(np.uint64)[:, None] ^ key[0]) ^ frames.astype(np.uint64) ^ key[1])
    steps = (np.arange(len(_DRAWS), dtype=np.uint64) + np.uint64(1)) * GOLDEN
    draws = (mix64(state[..., None] + steps) >> np.uint64(11)) * 2.0**-53
    return {name: draws[..., k] for k, name in enumerate(_DRAWS)}


@lru_cache(maxsize=8)
def _key(seed: int, epoch: int) -> Array:
    return np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)


def sample_params(augment: Augment, numbers: dict[str, Array], sizes: Array) -> Augmentation:
    """Turn random ``numbers`` [n] each into parameters of ``augment`` for frames of ``sizes`` int [n, 2] (h, w)."""
    if augment.crop_area is None:
        box = np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int64)
    else:
        box = _crop_boxes(augment.crop_area, numbers, sizes)
    jitter, grey = numbers["jitter"] < COLOUR_SHARE, numbers["grey"] < augment.grey
    most = augment.jitter[3]
    hue = np.where(jitter, _between(numbers["hue"], (most, -most)), 0).astype(np.float32)
    grey_last = grey & (hue != 0)
    if any(augment.jitter) or augment.grey > 0:
        colour = _colour_maps(augment, numbers, jitter, grey & ~grey_last)
    else:
        colour = np.broadcast_to(np.eye(3, 4, dtype=np.float32), (len(sizes), 3, 4))
    sigma = np.where(numbers["blur"] < augment.blur, _between(numbers["sigma"], SIGMA), 0)
    return Augmentation(box, numbers["flip"] < augment.flip, colour, hue, grey_last, sigma.astype(np.float32))


def _between(numbers: Array, limits: tuple[float, float]) -> Array:
    return limits[0] + numbers * (limits[1] - limits[0])


def _crop_boxes(crop_area: tuple[float, float], numbers: dict[str, Array], sizes: Array) -> Array:
    """Boxes [n, 4]: the first of ten draws of area and aspect that fits, anywhere in the frame, else its centre."""
    areas, aspects = (np.stack([numbers[name] for name in names], axis=1) for names in (_AREAS, _ASPECTS))
    area = _between(areas, crop_area) * sizes.prod(axis=1)[:, None]
    aspect = np.exp(_between(aspects, (np.log(ASPECT[0]), np.log(ASPECT[1]))))
    tries = np.rint(np.stack([np.sqrt(area / aspect), np.sqrt(area * aspect)], axis=2)).astype(np.int64)
    fits = ((tries > 0) & (tries <= sizes[:, None])).all(axis=2)
    drawn = tries[np.arange(len(sizes)), fits.argmax(axis=1)]  # where none fits, not used
    corner = (np.stack([numbers["top"], numbers["left"]], axis=1) * (sizes - drawn + 1)).astype(np.int64)
    centre = _central_sides(sizes)
    fallback = np.concatenate([(sizes - centre) // 2, centre], axis=1)
    return np.where(fits.any(axis=1)[:, None], np.concatenate([corner, drawn], axis=1), fallback)


def _central_sides(sizes: Array) -> Array:
    """Height and width [n, 2] of the largest central box whose width over height lies within ASPECT."""
    height, width = sizes[:, 0], sizes[:, 1]
    low = np.minimum(height, np.rint(width / ASPECT[0]))
    narrow = np.minimum(width, np.rint(height * ASPECT[1]))
    return np.maximum(np.stack([low, narrow], axis=1), 1).astype(np.int64)


def _colour_maps(augment: Augment, numbers: dict[str, Array], jitter: Array, grey: Array) -> Array:
    """float32 [n, 3, 4]: brightness, contrast, saturation where ``jitter`` bool [n], then grey where ``grey``."""
    scale = {
        name: np.where(jitter, _between(numbers[name], (1 - by, 1 + by)), 1)
        for name, by in zip(_JITTERED, augment.jitter, strict=False)
    }
    saturation = np.where(grey, 0, scale["saturation"])[:, None, None]
    matrix = saturation * np.eye(3) + (1 - saturation) * TO_GREY
    gain = scale["brightness"] * scale["contrast"]
    of_mean = scale["brightness"] * (1 - scale["contrast"])
    shift = matrix.sum(axis=2) * of_mean[:, None]
    return np.concatenate([matrix * gain[:, None, None], shift[..., None]], axis=2).astype(np.float32)


def augment(frame: Array, augmentation: Augmentation, k: int, out: Array) -> None:
    """Augment one ``frame`` uint8 [h, w, 3] by entry ``k`` into ``out`` uint8 [S, S, 3], with OpenCV."""
    top, left, height, width = augmentation.box[k].tolist()
    # Copied first: Intel's kernel waits for memory several times as long as a copy does.
    shrink(frame[top : top + height, left : left + width].copy(), out)
    if augmentation.flip[k]:
        cv2.flip(out, 1, dst=out)
    if augmentation.recolours[k]:
        colour = augmentation.colour[k].copy()
        colour[:, 3] *= np.dot(LUMA, cv2.mean(out)[:3])
        cv2.transform(out, colour, dst=out)
    if augmentation.hue[k] != 0:
        turn_hue(out, float(augmentation.hue[k]))
        if augmentation.grey[k]:
            cv2.transform(out, TO_GREY, dst=out)
    if augmentation.sigma[k] > 0:
        # Beyond three deviations a kernel's weights round to nothing (OpenCV's own rule for bytes has this width).
        taps = min(blur_window(len(out)), round(6 * float(augmentation.sigma[k]) + 1) | 1)
        gaussian(out, taps, float(augmentation.sigma[k]))
