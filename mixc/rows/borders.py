"""Where the epochs of a stream begin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


class Borders:
    """The epochs of an endless stream, in its tokens or rows; each that is asked for has one.

    `size` is what every epoch has, or a function of the epoch: then each is counted once those
    before it are.
    """

    def __init__(self, size: int | Callable[[int], int]) -> None:
        self._even = size if isinstance(size, int) else None
        self._size = size if callable(size) else None
        self._begin = [0]

    def begin(self, epochs: Index) -> Index:
        """Where epochs begin, int64[n]."""
        if self._even is not None:
            return epochs * self._even
        while len(self._begin) <= epochs.max(initial=0):
            self._count()
        return np.array(self._begin, np.int64)[epochs]

    def holding(self, places: Index) -> Index:
        """The epoch that each place lies in, int64[n]."""
        if self._even is not None:
            return places // self._even
        while self._begin[-1] <= places.max(initial=-1):
            self._count()
        return np.searchsorted(np.array(self._begin), places, side="right") - 1

    def one(self, epoch: int) -> tuple[int, int]:
        """Where an epoch begins and ends."""
        if self._even is not None:
            return epoch * self._even, (epoch + 1) * self._even
        while len(self._begin) <= epoch + 1:
            self._count()
        return self._begin[epoch], self._begin[epoch + 1]

    def within(self, epochs: float, most: int) -> int:
        """The size of the first so many epochs, of the last the part rounded down; or `most`."""
        if self._even is not None:
            return most if epochs * self._even >= most else int(epochs * self._even)
        whole = 0
        while whole + 1 <= epochs and self.one(whole)[1] < most:
            whole += 1
        begin, end = self.one(whole)
        return min(most, begin + int((end - begin) * min(epochs - whole, 1.0)))

    def _count(self) -> None:
        assert self._size is not None
        self._begin.append(self._begin[-1] + self._size(len(self._begin) - 1))
