"""The one source of randomness: a counter-based generator keyed by what it is for.

A stream is named by (seed, purpose, domain, epoch), and its n-th word depends on nothing else:
not on other streams, not on the order of calls, not on the number of workers. The words are
Philox-4x64-10 (Salmon et al., SC 2011), whose raw output NumPy keeps stable across releases;
NumPy's derived distributions are not stable, so we derive our own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DOUBLE_STEP = 2.0**-53


@dataclass(frozen=True)
class Stream:
    """A named stream of random words."""

    seed: int
    purpose: str
    domain: str = ""
    epoch: int = 0

    def key(self) -> NDArray[np.uint64]:
        """The 128-bit Philox key of this stream, as uint64[2]."""
        name = f"{self.seed}\x1f{self.purpose}\x1f{self.domain}\x1f{self.epoch}"
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        return np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def words(self, n: int, start: int = 0) -> NDArray[np.uint64]:
        """Words `start` to `start + n`, uint64[n]. Any part costs the same."""
        counter, skip = divmod(start, 4)  # Philox-4x64 gives four words a count
        generator = np.random.Philox(key=self.key(), counter=counter)
        return generator.random_raw(skip + n)[skip:]

    def uniforms(self, n: int) -> NDArray[np.float64]:
        """float64[n] in [0, 1), 53 bits each."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * _DOUBLE_STEP

    def normals(self, n: int) -> NDArray[np.float64]:
        """float64[n], standard normal, by the Box-Muller transform."""
        half = (n + 1) // 2
        u = self.uniforms(2 * half)
        radius = np.sqrt(-2.0 * np.log1p(-u[:half]))
        angle = 2.0 * np.pi * u[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A permutation of 0..n-1, int64[n]: the order of `n` random words."""
        return stable_order(self.words(n))

    def hash(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """A keyed hash of each id, uint64 of the same shape: equal ids have equal hashes.

        The finaliser of SplitMix64 (Steele et al., OOPSLA 2014), twice, each time under a
        fresh half of the key; a bijection, so distinct ids never collide.
        """
        x = ids.astype(np.uint64)
        for half in self.key():
            x = x + half
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
        return x


def stable_order(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The stable order of random words, int64[n]; without ties, the faster sort gives the same."""
    order = np.argsort(words)
    found = words[order]
    return order if (found[1:] != found[:-1]).all() else np.argsort(words, kind="stable")
