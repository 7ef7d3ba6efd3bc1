"""Named random streams: one per purpose, so that every policy meets the same tasks, tools and arrivals.

Only the uniform doubles of PCG64 are drawn from NumPy (53 bits of the raw stream, the same in every version); all other
distributions are inverse transforms of them, and whoever uses a sample quantises it to an integer.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from statistics import NormalDist

import numpy as np

__all__ = ["Stream"]

_NORMAL = NormalDist()


class Stream:
    """Random numbers for one purpose: Stream(seed, "tools") never depends on what other streams have drawn."""

    def __init__(self, seed: int, *names: str | int) -> None:
        self._keys = [seed, *(zlib.crc32(str(name).encode()) for name in names)]
        self._generator: np.random.Generator | None = None  # made when first drawn from: many streams never are
        self._block: list[float] = []

    def uniform(self) -> float:
        """A double in [0, 1)."""
        if not self._block:
            if self._generator is None:
                self._generator = np.random.Generator(np.random.PCG64(self._keys))
            self._block = self._generator.random(64).tolist()[::-1]
        return self._block.pop()

    def integer(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self.uniform())

    def normal(self) -> float:
        """A standard normal by its inverse distribution function."""
        return _NORMAL.inv_cdf(max(self.uniform(), 2.0**-53))

    def lognormal(self, mu: float, sigma: float) -> float:
        return math.exp(mu + sigma * self.normal())

    def gamma2(self, mean: float) -> float:
        """Gamma with shape 2: the sum of two exponentials."""
        return self.exponential(mean / 2) + self.exponential(mean / 2)

    def gamma(self, shape: float) -> float:
        """Gamma with scale 1, by rejection (Marsaglia and Tsang 2000); below shape 1 from that of shape + 1."""
        if shape < 1.0:
            return self.gamma(shape + 1.0) * math.pow(1.0 - self.uniform(), 1.0 / shape)
        d = shape - 1.0 / 3.0
        while True:
            x = self.normal()
            v = math.pow(max(0.0, 1.0 + x / math.sqrt(9.0 * d)), 3.0)
            if v > 0.0 and math.log(1.0 - self.uniform()) < 0.5 * x * x + d * (1.0 - v + math.log(v)):
                return d * v

    def weighted(self, weights: Sequence[float]) -> int:
        """Index drawn in proportion to the weights."""
        sums = list(accumulate(weights))
        return min(bisect_right(sums, self.uniform() * sums[-1]), len(sums) - 1)
