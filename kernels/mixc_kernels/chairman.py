"""Tijdeman's chairman assignment: an order of rows that keeps its promise at every prefix.

R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980). With weights
w_i = counts_i / R over k >= 2 domains, R = sum(counts), every prefix of n rows has
|n_i - w_i n| <= 1 - 1/(2k-2).

Domain i, which has j rows so far, may take row n once it is far enough behind,
w_i n - j >= 1/(2k-2), and must before w_i n - j > 1 - 1/(2k-2). Each row goes to the domain that
must first. Both limits are fractions over (2k-2) counts_i, kept as whole part and remainder, so
that nothing is rounded and nothing overflows while 2k R < 2**63. Domains that may not yet wait in
one heap, by the row from which they may; the others stand in another, by the row before which
they must: O(log k) a row.

Weights that change along the rows change the limits alone: w_i n becomes the sum of the weights
up to row n, and his theorem holds as it is.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor, sqrt

import numba
import numpy as np
from numpy.typing import NDArray

_EXACT_ROWS = 3_037_000_499  # whose squares fit in int64


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


def assign_ramp(begin: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The domain of each row, uint16[R], while weights change linearly along the rows.

    `begin` is int64[K], 0 <= begin <= 2 counts, sum(begin) = sum(counts) = R: weights go from
    begin / R to (2 counts - begin) / R, and begin x + (counts - begin) x**2 rows are due after a
    part x of them all. Limits are float64, by IEEE operations that round alike everywhere; they
    err by less than 1e-6 rows while R < 2**32.
    """
    used = np.flatnonzero(counts)
    labels = np.zeros(int(counts.sum()), np.uint16)
    if len(used) > 1:
        _assign_ramp(begin[used].astype(np.float64), counts[used].astype(np.float64), labels)
    return used.astype(np.uint16)[labels] if len(used) else labels


@numba.njit(cache=True)
def push(heap: NDArray[np.int64], size: int, key: int) -> None:  # pragma: no cover - compiled
    """Put a key into a heap of `size`, which then holds one more."""
    at = size
    while at > 0:
        above = (at - 1) >> 1
        if heap[above] <= key:
            break
        heap[at] = heap[above]
        at = above
    heap[at] = key


@numba.njit(cache=True)
def pop(heap: NDArray[np.int64], size: int) -> int:  # pragma: no cover - compiled
    """The least key of a heap of `size`; afterwards it holds one less."""
    least, key, at = heap[0], heap[size - 1], 0
    while True:
        below = 2 * at + 1
        if below >= size - 1:
            break
        if below + 1 < size - 1 and heap[below + 1] < heap[below]:
            below += 1
        if heap[below] >= key:
            break
        heap[at] = heap[below]
        at = below
    heap[at] = key
    return int(least)


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
    # A key is a row and a domain, so that ties go to the first domain.
    waiting, ready = np.empty(domains, np.int64), np.empty(domains, np.int64)
    waits, stands = 0, 0
    for i in range(domains):
        push(waiting, waits, (may[i] + (may_part[i] > 0)) * domains + i)
        waits += 1
    for n in range(1, total + 1):
        while waits and waiting[0] < (n + 1) * domains:
            i = pop(waiting, waits) % domains
            waits -= 1
            push(ready, stands, must[i] * domains + i)
            stands += 1
        best = pop(ready, stands) % domains
        stands -= 1
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
        push(waiting, waits, (may[best] + (may_part[best] > 0)) * domains + best)
        waits += 1


@numba.njit(cache=True)
def when(
    begin: float, count: float, due: float, total: int
) -> float:  # pragma: no cover - compiled
    """The row, not rounded, at which a domain of a ramp is due so many rows; total + 1: never."""
    left = begin * begin + 4 * (count - begin) * due
    if due > count or left < 0:
        return total + 1.0
    return min(2 * due / (begin + sqrt(left)) * total, total + 1.0)


@numba.njit(cache=True)
def _assign_ramp(
    begin: NDArray[np.float64], counts: NDArray[np.float64], labels: NDArray[np.uint16]
) -> None:  # pragma: no cover - compiled
    total, domains = len(labels), len(counts)
    least = 1 / (2 * domains - 2)
    rows = np.zeros(domains, np.int64)
    waiting, ready = np.empty(domains, np.int64), np.empty(domains, np.int64)
    waits, stands = 0, 0
    for i in range(domains):
        may = when(begin[i], counts[i], least, total)
        push(waiting, waits, int(np.ceil(may)) * domains + i)
        waits += 1
    for n in range(1, total + 1):
        # Were all limits exact, one would always be ready; rounding may be a row late.
        while waits and (waiting[0] < (n + 1) * domains or not stands):
            i = pop(waiting, waits) % domains
            waits -= 1
            must = when(begin[i], counts[i], rows[i] + 1 - least, total)
            push(ready, stands, int(np.floor(must)) * domains + i)
            stands += 1
        best = pop(ready, stands) % domains
        stands -= 1
        labels[n - 1] = best
        rows[best] += 1
        may = when(begin[best], counts[best], rows[best] + least, total)
        push(waiting, waits, int(np.ceil(may)) * domains + best)
        waits += 1


def worst_error(
    labels: NDArray[np.uint16],
    counts: NDArray[np.int64],
    block: int,
    begin: NDArray[np.int64] | None = None,
) -> float:
    """The largest |rows of a domain - rows due| over the ends of blocks of `block` rows.

    Rows due are n counts / R after n rows, or those of a ramp from `begin` (see `assign_ramp`). A
    domain's error falls while it has no row, so only the ends of blocks in which it has one, and
    those just before, are looked at: O(R), whatever the number of domains. Without a ramp nothing
    is rounded but the result, while R**2 < 2**63; else it errs by less than 1e-6 rows.
    """
    counts, total = np.asarray(counts, np.int64), len(labels)
    if begin is None and total < _EXACT_ROWS:
        return int(_worst(labels, counts, block)) / max(total, 1)
    begin = counts if begin is None else begin
    return float(_worst_ramp(labels, begin.astype(np.float64), counts.astype(np.float64), block))


@numba.njit(cache=True)
def _worst(
    labels: NDArray[np.uint16], counts: NDArray[np.int64], block: int
) -> int:  # pragma: no cover - compiled
    """R times the largest error, in whole numbers; R below `_EXACT_ROWS`."""
    total, worst = len(labels), 0
    seen, last = np.zeros(len(counts), np.int64), np.full(len(counts), -1, np.int64)
    for first in range(0, total, block):
        end = min(first + block, total)
        for n in range(first, end):
            i = labels[n]
            if last[i] != first:
                last[i] = first
                worst = max(worst, abs(seen[i] * total - first * counts[i]))
            seen[i] += 1
        for n in range(first, end):
            i = labels[n]
            worst = max(worst, abs(seen[i] * total - end * counts[i]))
    for i in range(len(counts)):
        worst = max(worst, abs(seen[i] - counts[i]) * total)
    return worst


@numba.njit(cache=True)
def rows_due(begin: float, count: float, part: float) -> float:  # pragma: no cover - compiled
    """The rows of a domain of a ramp that are due after a part of all rows."""
    return begin * part + (count - begin) * (part * part)


@numba.njit(cache=True)
def _worst_ramp(
    labels: NDArray[np.uint16], begin: NDArray[np.float64], counts: NDArray[np.float64], block: int
) -> float:  # pragma: no cover - compiled
    total, worst = len(labels), 0.0
    seen, last = np.zeros(len(counts), np.int64), np.full(len(counts), -1, np.int64)
    for first in range(0, total, block):
        end = min(first + block, total)
        for n in range(first, end):
            i = labels[n]
            if last[i] != first:
                last[i] = first
                worst = max(worst, abs(seen[i] - rows_due(begin[i], counts[i], first / total)))
            seen[i] += 1
        for n in range(first, end):
            i = labels[n]
            worst = max(worst, abs(seen[i] - rows_due(begin[i], counts[i], end / total)))
    for i in range(len(counts)):
        worst = max(worst, abs(seen[i] - counts[i]))
    return worst


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
