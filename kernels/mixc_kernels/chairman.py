"""Tijdeman's chairman assignment: an order of rows that keeps its promise at every prefix.

R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980). With weights
w_i = counts_i / R over k >= 2 domains, R = sum(counts), every prefix of n rows has
|n_i - w_i n| <= 1 - 1/(2k-2).

Domain i, which has j rows so far, may take row n once it is far enough behind,
w_i n - j >= 1/(2k-2), and must before w_i n - j > 1 - 1/(2k-2). Each row goes to the domain that
must first. Both limits are fractions over (2k-2) counts_i, kept as whole part and remainder, so
that nothing is rounded and nothing overflows while 2k R < 2**63.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numba
import numpy as np
from numpy.typing import NDArray


def assign(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The domain of each row, uint16[R], from the rows of each domain, int64[K]."""
    counts = np.asarray(counts, np.int64)
    used = np.flatnonzero(counts)
    if len(counts) > 1 << 16 or 2 * len(counts) * int(counts.sum()) >= 1 << 63:
        raise ValueError("too many domains or rows")
    labels = np.zeros(int(counts.sum()), np.uint16)
    if len(used) > 1:
        _assign(counts[used], labels)
    return used.astype(np.uint16)[labels] if len(used) else labels


@numba.njit(cache=True)
def _assign(
    counts: NDArray[np.int64], labels: NDArray[np.uint16]
) -> None:  # pragma: no cover - compiled
    total, domains = len(labels), len(counts)
    margin = 2 * domains - 2
    unit = margin * counts
    may, may_part = total // unit, total % unit
    must, must_part = (margin - 1) * total // unit, (margin - 1) * total % unit
    step, step_part = total // counts, total % counts * margin
    for n in range(1, total + 1):
        best = -1
        for i in range(domains):
            ready = may[i] < n or (may[i] == n and may_part[i] == 0)
            if ready and (best < 0 or must[i] < must[best]):
                best = i
        labels[n - 1] = best
        may[best] += step[best]
        may_part[best] += step_part[best]
        if may_part[best] >= unit[best]:
            may_part[best] -= unit[best]
            may[best] += 1
        must[best] += step[best]
        must_part[best] += step_part[best]
        if must_part[best] >= unit[best]:
            must_part[best] -= unit[best]
            must[best] += 1


def assign_reference(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The same in plain fractions, O(K R): for tests."""
    used = [int(i) for i in np.flatnonzero(counts)]
    total, margin = int(np.sum(counts)), max(2 * len(used) - 2, 1)
    rows = dict.fromkeys(used, 0)
    labels = []
    for n in range(1, total + 1):

        def limit(i: int, behind: Fraction) -> Fraction:
            return (rows[i] + behind) * total / int(counts[i])

        ready = [i for i in used if len(used) == 1 or ceil(limit(i, Fraction(1, margin))) <= n]
        best = min(ready, key=lambda i: (floor(limit(i, 1 - Fraction(1, margin))), i))
        rows[best] += 1
        labels.append(best)
    return np.array(labels, np.uint16)
