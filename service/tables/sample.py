"""A uniform sample of rows that are read once, of bounded size: large files need not fit into memory."""

import numpy as np
from numpy.typing import NDArray

from service.schemas import Array

SLACK = 2
"""The sample is cut back when it is so many times too large: cutting costs a copy."""


class Sample:
    """Keeps the ``size`` rows with the smallest of random numbers that are drawn for each row.

    After Efraimidis and Spirakis (Information Processing Letters 97, 2006) with equal weights; batch by batch.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self._size = size
        self._random = np.random.default_rng([seed, 5])
        self._limit = np.inf
        self._keys: list[NDArray[np.float64]] = []
        self._parts: dict[str, list[Array]] = {}
        self.offered = 0
        """Rows so far, kept or not."""

    def choose(self, count: int) -> NDArray[np.intp]:
        """Which of the next ``count`` rows may be kept; ``add`` these."""
        self.offered += count
        keys = self._random.random(count)
        chosen = np.flatnonzero(keys < self._limit)
        self._keys.append(keys[chosen])
        return chosen

    def add(self, **parts: Array) -> None:
        """The chosen rows, as arrays by name, rows first."""
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part)
        if sum(map(len, self._keys)) > SLACK * self._size:
            self._cut()

    def take(self) -> dict[str, Array]:
        """All arrays of the sample, in the order of the rows. Leaves it empty."""
        if sum(map(len, self._keys)) > self._size:
            self._cut()
        arrays = {}
        for name in list(self._parts):
            arrays[name] = np.concatenate(self._parts.pop(name))
        self._keys = []
        return arrays

    def _cut(self) -> None:
        keys = np.concatenate(self._keys)
        kept = np.sort(np.argpartition(keys, self._size - 1)[: self._size])
        self._keys = [keys[kept]]
        self._limit = float(self._keys[0].max())
        for parts in self._parts.values():
            whole = np.concatenate(parts)
            parts.clear()
            parts.append(whole[kept])
