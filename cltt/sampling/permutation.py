"""Random permutations from a seed sequence: as tables, or computed element by element.

They use only the raw words of numpy's bit generators and seed sequences. NEP 19 promises that these never change, while
``Generator.permutation`` may. A saved run therefore continues with the same order under another numpy.
"""

from __future__ import annotations

import numpy as np

MAX_SEED = 2**64
# Purpose of a random stream: the third number of its seeds.
RUNS, SHIFT, BLOCK, FRAMES, STEPS, GROUPS = range(6)
_ROUNDS = 5  # of two half rounds each
# 2**64 over the golden ratio; a multiple of it is added to or mixed into a hash to separate numbered streams.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijective hash of uint64 (Steele, Lea, Flood 2014, doi 10.1145/2660193.2660195)."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def seed_sequence(*numbers: int) -> np.random.SeedSequence:
    """Seed sequence of ``numbers``, each from 0 to 2**64-1. Different lists of one length give different words."""
    words = [word for number in numbers for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.SeedSequence(words)


def random_below(size: int, seeds: np.random.SeedSequence) -> int:
    """A random number from 0 to size-1."""
    return int(seeds.generate_state(1, np.uint64)[0]) % size


def hashed_below(size: int, ids: np.ndarray, seeds: np.random.SeedSequence) -> np.ndarray:
    """For each of ``ids`` a number from 0 to size-1, a hash of id and seeds: int64; ``size`` is at most 2**32."""
    first, second = seeds.generate_state(2, np.uint64)
    words = mix64(mix64(ids.ravel().astype(np.uint64) * GOLDEN ^ first) ^ second) >> np.uint64(32)
    return (words * np.uint64(size) >> np.uint64(32)).astype(np.int64).reshape(ids.shape)


def shuffled(size: int, seeds: np.random.SeedSequence) -> np.ndarray:
    """A random permutation of 0..size-1: int64 [size]."""
    return shuffled_in_groups(np.broadcast_to(np.int64(0), size), 1, seeds)[0]


def shuffled_in_groups(group: np.ndarray, num_rows: int, seeds: np.random.SeedSequence) -> np.ndarray:
    """For each of ``num_rows`` rows a permutation of 0..n-1 that is sorted by group: int64 [num_rows, n].

    ``group`` int64 [n] is the group of each element, counted from 0. Within a group the order is random. Column x
    holds the same group in every row. The sorted words hold the group in their upper bits, then random bits, then the
    element. That is several times faster than a stable argsort, and as all words differ, the result does not depend on
    the sorting algorithm.
    """
    size = len(group)
    element_bits, group_bits = np.uint64((size - 1).bit_length()), np.uint64(int(group.max(initial=0)).bit_length())
    words = np.random.PCG64(seeds).random_raw(num_rows * size).reshape(num_rows, size)
    words >>= element_bits + group_bits
    words <<= element_bits
    words |= np.arange(size, dtype=np.min_scalar_type(size))
    if group_bits:
        words |= group.astype(np.uint64) << (np.uint64(64) - group_bits)
    words.sort(axis=1)
    words &= (np.uint64(1) << element_bits) - np.uint64(1)
    return words.view(np.int64)


class FeistelPermutation:
    """A random permutation of 0..size-1, computed element by element, without a table."""

    def __init__(self, size: int, seeds: np.random.SeedSequence) -> None:
        self._size = np.array([size])
        self._keys = seeds.generate_state(2 * _ROUNDS, np.uint64)[:, None]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Images of ``positions`` (integers from 0 to size-1, any shape): int64 of the same shape."""
        return _permuted(positions.ravel(), self._size, self._keys).reshape(positions.shape)


class PermutationFamily:
    """An independent random permutation for each of many sizes, computed element by element, without tables."""

    def __init__(self, sizes: np.ndarray, seeds: np.random.SeedSequence) -> None:
        self._sizes = sizes
        self._keys = seeds.generate_state(2 * _ROUNDS, np.uint64)[:, None]

    def __call__(self, positions: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Images of ``positions`` under permutation number ``which``: int64, the two broadcast together."""
        positions, which = np.broadcast_arrays(positions, which)
        own = mix64(which.ravel().astype(np.uint64) * GOLDEN)
        return _permuted(positions.ravel(), self._sizes[which.ravel()], mix64(self._keys ^ own)).reshape(which.shape)


def _permuted(positions: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Images of ``positions`` under a Feistel network over the next power of two of each size.

    An image outside the size is permuted again until it is inside (cycle walking: Black, Rogaway 2002, "Ciphers with
    arbitrary finite domains"); that takes less than two turns per element on average.

    ``positions`` [n]; ``sizes`` [n] or [1]; ``keys`` uint64 [2 * rounds, n] or [2 * rounds, 1].
    """
    bits = np.maximum(2, np.frexp(sizes - 1.0)[1]).astype(np.uint64)  # the bit length, exact below 2**53
    low_bits = bits >> np.uint64(1)
    high_bits = bits - low_bits
    sizes = np.broadcast_to(sizes.astype(np.uint64), positions.shape)
    images = _network(positions.astype(np.uint64), low_bits, high_bits, keys)
    outside = np.flatnonzero(images >= sizes)
    while len(outside):
        parts = [part if part.shape[-1] == 1 else part[..., outside] for part in (low_bits, high_bits, keys)]
        images[outside] = _network(images[outside], *parts)
        outside = outside[images[outside] >= sizes[outside]]
    return images.view(np.int64)


def _network(x: np.ndarray, low_bits: np.ndarray, high_bits: np.ndarray, keys: np.ndarray) -> np.ndarray:
    high, low = x >> low_bits, x & ((np.uint64(1) << low_bits) - np.uint64(1))
    all_bits = np.uint64(64)
    for high_key, low_key in keys.reshape(_ROUNDS, 2, -1):
        high ^= mix64(low ^ high_key) >> (all_bits - high_bits)
        low ^= mix64(high ^ low_key) >> (all_bits - low_bits)
    return (high << low_bits) | low
