"""One hash of 64 bits, for whatever is drawn in closed form: the order of frames and windows, augmentation."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, uint64 -> uint64, a bijection (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195)."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
