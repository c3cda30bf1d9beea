"""Sorting columns by a small key: keys are counted, then all columns moved at once."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def sort_columns(columns: Index, keys: int) -> Index:
    """Columns int64[c, n], of which the first is the key, in [0, keys), in the key's order; stable.

    Several times as fast as an argsort and a gather a column, where keys are fewer than rows.
    Raises ValueError if a key is out of range.
    """
    out = np.empty_like(columns)
    _sort_columns(columns, np.zeros(keys, np.int64), out)
    return out


@numba.njit(cache=True, nogil=True)
def _sort_columns(
    columns: Index, following: Index, out: Index
) -> None:  # pragma: no cover - compiled
    count, length = columns.shape
    for i in range(length):
        if columns[0, i] < 0 or columns[0, i] >= len(following):
            raise ValueError("a key is not in [0, keys)")
        following[columns[0, i]] += 1
    place = 0
    for key in range(len(following)):
        size = following[key]
        following[key] = place
        place += size
    for i in range(length):
        key = columns[0, i]
        place = following[key]
        following[key] = place + 1
        for column in range(count):
            out[column, place] = columns[column, i]


def sort_columns_reference(columns: Index) -> Index:
    """The same in plain numpy: for tests."""
    return columns[:, np.argsort(columns[0], kind="stable")]
