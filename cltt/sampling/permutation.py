"""Random permutations mixed from (seed, epoch, purpose): one as a table, one computed element by element.

Both are made of the raw words of numpy's bit generators and seed sequences, which numpy promises never to change, so
that a saved run goes on with the same order under another numpy (NEP 19: ``Generator.permutation`` may change).
"""

from __future__ import annotations

import numpy as np

MAX_SEED = 2**64
# Finaliser of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)
_ROUNDS = 5  # of two half rounds each


def seed_sequence(*numbers: int) -> np.random.SeedSequence:
    """Mix whole numbers from 0 to 2**64-1, each in two words of its own, so that no two lists give the same words."""
    words = [word for number in numbers for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.SeedSequence(words)


def shuffled(size: int, seeds: np.random.SeedSequence) -> np.ndarray:
    """The numbers 0..size-1 in random order: int64 [size].

    Sorts random words that carry their number in the lowest bits: several times faster than a stable argsort, and
    every word differs, so that the outcome does not hang on the sorting algorithm.
    """
    bits = np.uint64((size - 1).bit_length())
    words = np.random.PCG64(seeds).random_raw(size)
    words >>= bits
    words <<= bits
    words |= np.arange(size, dtype=np.uint64)
    words.sort()
    words &= (np.uint64(1) << bits) - np.uint64(1)
    return words.astype(np.int64)


class KeyedPermutation:
    """A permutation of 0..size-1 computed element by element: a Feistel network over the next power of two, walked
    along its cycle until it lands below ``size`` (Black, Rogaway 2002, "Ciphers with arbitrary finite domains").

    Less than two walks an element on average, whatever the size.
    """

    def __init__(self, size: int, seeds: np.random.SeedSequence) -> None:
        bits = max(2, (size - 1).bit_length())
        self.size = np.uint64(size)
        self._low_bits, self._high_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
        self._low_mask = (np.uint64(1) << self._low_bits) - np.uint64(1)
        self._keys = seeds.generate_state(2 * _ROUNDS, np.uint64)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Images of ``positions`` (integers from 0 to size-1, any shape): int64 of the same shape."""
        images = self._network(positions.astype(np.uint64).ravel())
        outside = np.flatnonzero(images >= self.size)
        while len(outside):
            images[outside] = self._network(images[outside])
            outside = outside[images[outside] >= self.size]
        return images.astype(np.int64).reshape(positions.shape)

    def _network(self, x: np.ndarray) -> np.ndarray:
        high, low = x >> self._low_bits, x & self._low_mask
        for high_key, low_key in self._keys.reshape(_ROUNDS, 2):
            high ^= _top_bits(low ^ high_key, self._high_bits)
            low ^= _top_bits(high ^ low_key, self._low_bits)
        return (high << self._low_bits) | low


def _top_bits(x: np.ndarray, bits: np.uint64) -> np.ndarray:
    """The ``bits`` upper bits of a hash of uint64 ``x``, which is used up."""
    x *= _MIX_1
    x ^= x >> _HALF
    x *= _MIX_2
    x >>= np.uint64(64) - bits
    return x
