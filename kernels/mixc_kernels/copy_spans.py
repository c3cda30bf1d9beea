"""Copying token spans from a shard into a buffer: the inner loop of gather."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def copy_spans(
    values: NDArray[Any], starts: Index, targets: Index, lengths: Index, out: NDArray[Any]
) -> None:  # pragma: no cover - compiled
    """Copy `values[starts[i] : starts[i] + lengths[i]]` to `out[targets[i] : ...]` for each i.

    `values` and `out` are flat and of one type; `starts`, `targets` and `lengths` are int64[n].
    Spans that leave either array raise IndexError before anything of them is copied.
    """
    for i in range(len(starts)):
        start, target, length = starts[i], targets[i], lengths[i]
        if start < 0 or start + length > len(values):
            raise IndexError("a span leaves the shard")
        if target < 0 or target + length > len(out):
            raise IndexError("a span leaves the buffer")
        out[target : target + length] = values[start : start + length]


def copy_spans_reference(
    values: NDArray[Any], starts: Index, targets: Index, lengths: Index, out: NDArray[Any]
) -> None:
    """The same in plain numpy: for tests."""
    for start, target, length in zip(starts, targets, lengths, strict=True):
        out[target : target + length] = values[start : start + length]
