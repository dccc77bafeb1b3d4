"""Pictures with edges and texture, and JPEGs of them of every kind."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from tests.helpers import data


def detailed(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with edges and texture: RGB uint8 [height, width, 3]."""
    image = data.frame_image(seed, 3 * seed, height, width)
    rng = np.random.default_rng(seed)
    for _ in range(12):
        corner = (int(rng.integers(width)), int(rng.integers(height)))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        cv2.circle(image, corner, int(rng.integers(3, max(4, height // 4))), colour, -1)
    return image


def jpeg(image: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", **{"quality": 90, **options})
    return out.getvalue()


SIZES = [(240, 320), (241, 333), (97, 61), (528, 720), (50, 50), (64, 64), (33, 200), (300, 17), (65, 130)]
KINDS = {
    "baseline": [jpeg(detailed(h, w, k)) for k, (h, w) in enumerate(SIZES)],
    "progressive": [jpeg(detailed(h, w, k), progressive=True) for k, (h, w) in enumerate(SIZES)],
    "grayscale": [jpeg(detailed(h, w, k)[..., 0]) for k, (h, w) in enumerate(SIZES)],
    "no subsampling": [jpeg(detailed(h, w, k), subsampling=0) for k, (h, w) in enumerate(SIZES)],
    "restart markers": [jpeg(detailed(h, w, k), restart_marker_rows=1) for k, (h, w) in enumerate(SIZES)],
}
