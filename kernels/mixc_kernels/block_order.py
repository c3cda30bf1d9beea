"""An order of rows in blocks that keeps Tijdeman's promise at the end of every block.

Where rows are shuffled inside blocks, only how many each domain has at the blocks' ends is left of
the chairman assignment (`chairman`), and that takes K steps a block instead of log K a row.

Row j of domain i may be given out at prefix n once w_i n - j >= 1/(2k-2), and must be before
w_i n - j > 1 - 1/(2k-2). By his theorem there is an order of single rows that keeps all these
limits, so there is one of blocks, to whose ends they are rounded; and to take, block by block,
what is due first of what may be taken, finds one (unit jobs with whole releases and deadlines).
At each end a domain has all rows of its share, or one more, so that there is little to choose.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numba
import numpy as np
from numpy.typing import NDArray

from mixc_kernels.chairman import pop, push, rows_due, when

Labels = NDArray[np.uint16]


def assign_blocks(counts: NDArray[np.int64], block: int) -> Labels:
    """The domain of each row, uint16[R], from the rows of each domain, int64[K].

    In each block of `block` rows domains stand in their order.
    """
    counts = np.asarray(counts, np.int64)
    used, total = np.flatnonzero(counts), int(counts.sum())
    if len(counts) > 1 << 16 or max(2 * len(counts), min(block, total)) * total >= 1 << 63:
        raise ValueError("too many domains or rows, or too large a block")
    labels = np.zeros(total, np.uint16)
    if len(used) > 1:
        _assign(counts[used], block, labels)
    return used.astype(np.uint16)[labels] if len(used) else labels


def assign_blocks_of_ramp(
    begin: NDArray[np.int64], counts: NDArray[np.int64], block: int
) -> Labels:
    """The same while weights change linearly along the rows, as `chairman.assign_ramp` has it.

    Limits are wider by `rounding` than without a ramp.
    """
    used = np.flatnonzero(counts)
    labels = np.zeros(int(counts.sum()), np.uint16)
    if len(used) > 1:
        ends = begin[used].astype(np.float64), counts[used].astype(np.float64)
        _assign_ramp(*ends, block, rounding(len(labels)), labels)
    return used.astype(np.uint16)[labels] if len(used) else labels


def rounding(rows: int) -> float:
    """What the limits of a ramp of so many rows are rounded by, in rows: float64 errs by less."""
    return max(1e-6, rows * 2.0**-51)


def shuffle_blocks(labels: Labels, block: int, words: NDArray[np.uint64]) -> None:
    """Shuffle the rows of each block, by one random word a row (Fisher and Yates).

    Both are [n]; the last block may be short.
    """
    if len(words) != len(labels):
        raise ValueError("there is not one word for each row")
    _shuffle(labels, block, words)


@numba.njit(cache=True, nogil=True)
def _shuffle(
    labels: Labels, block: int, words: NDArray[np.uint64]
) -> None:  # pragma: no cover - compiled
    for first in range(0, len(labels), block):
        for n in range(min(block, len(labels) - first) - 1, 0, -1):
            part = np.float64(words[first + n] >> np.uint64(11)) * 2.0**-53
            other, mine = first + int(part * (n + 1)), first + n
            labels[mine], labels[other] = labels[other], labels[mine]


@numba.njit(cache=True)
def _give_out(
    least: NDArray[np.int64],
    given: NDArray[np.int64],
    heap: NDArray[np.int64],
    open_: int,
    rows: Labels,
) -> None:  # pragma: no cover - compiled
    """Fill a block: with what domains must have, and with what is due first of `heap`."""
    domains, at = len(given), 0
    left = len(rows)
    for i in range(domains):
        left -= least[i] - given[i]
    if left < 0 or left > open_:
        raise ValueError("weights do not add up to the rows of a block")
    for _ in range(left):
        least[pop(heap, open_) % domains] += 1
        open_ -= 1
    for i in range(domains):
        for _ in range(least[i] - given[i]):
            rows[at] = i
            at += 1
        given[i] = least[i]


@numba.njit(cache=True)
def _assign(
    counts: NDArray[np.int64], block: int, labels: Labels
) -> None:  # pragma: no cover - compiled
    total, domains = len(labels), len(counts)
    margin = 2 * domains - 2
    share, part = np.zeros(domains, np.int64), np.zeros(domains, np.int64)
    least, given = np.zeros(domains, np.int64), np.zeros(domains, np.int64)
    heap = np.empty(domains, np.int64)
    for first in range(0, total, block):
        end, open_ = min(first + block, total), 0
        for i in range(domains):
            # The share of n rows is n counts / R: its whole part, and what is left over R.
            more = (end - first) * counts[i]
            share[i] += more // total
            part[i] += more % total
            if part[i] >= total:
                part[i] -= total
                share[i] += 1
            must = margin * part[i] > (margin - 1) * total
            least[i] = max(share[i] + must, given[i])
            if least[i] == share[i] and margin * part[i] >= total:
                rows = ((margin - 1) * total - margin * part[i]) // (margin * counts[i])
                push(heap, open_, rows * domains + i)
                open_ += 1
        _give_out(least, given, heap, open_, labels[first:end])


@numba.njit(cache=True)
def _assign_ramp(
    begin: NDArray[np.float64],
    counts: NDArray[np.float64],
    block: int,
    slack: float,
    labels: Labels,
) -> None:  # pragma: no cover - compiled
    total, domains = len(labels), len(counts)
    margin = 1 / (2 * domains - 2)
    least, given = np.zeros(domains, np.int64), np.zeros(domains, np.int64)
    heap = np.empty(domains, np.int64)
    for first in range(0, total, block):
        end, open_ = min(first + block, total), 0
        for i in range(domains):
            share = rows_due(begin[i], counts[i], end / total)
            must = int(np.ceil(share - 1 + margin - slack))
            least[i] = max(must, given[i])
            if least[i] < int(np.floor(share + 1 - margin + slack)):
                row = when(begin[i], counts[i], least[i] + 1 - margin, total)
                push(heap, open_, int(row) * domains + i)
                open_ += 1
        _give_out(least, given, heap, open_, labels[first:end])


def assign_blocks_reference(counts: NDArray[np.int64], block: int) -> Labels:
    """The same as `assign_blocks` in plain fractions: for tests."""
    used, total = [int(i) for i in np.flatnonzero(counts)], int(np.sum(counts))
    margin, given = Fraction(1, max(2 * len(used) - 2, 1)), dict.fromkeys(used, 0)
    labels: list[int] = []
    for first in range(0, total, block):
        end = min(first + block, total)
        share = {i: Fraction(end * int(counts[i]), total) for i in used}
        least = {i: max(ceil(share[i] - 1 + margin), given[i]) for i in used}
        may = [i for i in used if least[i] < floor(share[i] + 1 - margin)]
        may.sort(key=lambda i: (floor((least[i] + 1 - margin) * total / int(counts[i])), i))
        for i in may[: end - sum(least.values())]:
            least[i] += 1
        labels += [i for i in used for _ in range(least[i] - given[i])]
        given = least
    return np.array(labels, np.uint16)


def shuffle_blocks_reference(labels: Labels, block: int, words: NDArray[np.uint64]) -> Labels:
    """The same as `shuffle_blocks`, into a copy: for tests."""
    rows = labels.tolist()
    for first in range(0, len(rows), block):
        for n in range(min(first + block, len(rows)) - 1, first, -1):
            other = first + int((int(words[n]) >> 11) * 2.0**-53 * (n - first + 1))
            rows[n], rows[other] = rows[other], rows[n]
    return np.array(rows, np.uint16)
