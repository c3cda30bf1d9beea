"""Which documents pieces of a stream are cut from: the inner loop of a domain's packed stream."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Narrow = NDArray[np.uint32] | Index


def cut_pieces(
    ends: Index, order: Narrow, begin: Index, end: Index
) -> tuple[Index, Index, Index, Index]:
    """The spans that pieces `begin[i]` to `end[i]` of a stream are made of, in order.

    The stream is documents end to end: the n-th is number `order[n]`, has at least one token, and
    ends at `ends[n]`. All are int64, `order` perhaps uint32; pieces are not empty and lie within
    the stream. Of each span: its piece, its document's number, its first token in the document,
    and its length, int64[m].
    """
    first, count = np.empty(len(begin), np.int64), np.empty(len(begin), np.int64)
    size = _count_pieces(ends, begin, end, first, count)
    out = tuple(np.empty(size, np.int64) for _ in range(4))
    _cut_pieces(ends, order, begin, end, first, count, *out)
    return out[0], out[1], out[2], out[3]


@numba.njit(cache=True, nogil=True)
def _count_pieces(
    ends: Index, begin: Index, end: Index, first: Index, count: Index
) -> int:  # pragma: no cover - compiled
    """The first document of each piece, how many it touches, and the sum of them.

    Pieces come in order, as a rule, and close to each other: searching on from where the last
    was found, in ever longer steps, takes half as long as searching through all.
    """
    size, low = 0, 0
    for i in range(len(begin)):
        if low and ends[low - 1] > begin[i]:
            low = 0
        step = 1
        while low + step <= len(ends) and ends[low + step - 1] <= begin[i]:
            low += step
            step *= 2
        high = min(low + step, len(ends))
        while low < high:
            middle = (low + high) // 2
            if ends[middle] <= begin[i]:
                low = middle + 1
            else:
                high = middle
        last = low
        while ends[last] < end[i]:
            last += 1
        first[i], count[i] = low, last - low + 1
        size += count[i]
    return size


@numba.njit(cache=True, nogil=True)
def _cut_pieces(
    ends: Index,
    order: Narrow,
    begin: Index,
    end: Index,
    first: Index,
    count: Index,
    piece: Index,
    document: Index,
    start: Index,
    length: Index,
) -> None:  # pragma: no cover - compiled
    at = 0
    for i in range(len(begin)):
        document_begin = ends[first[i] - 1] if first[i] else 0
        for place in range(first[i], first[i] + count[i]):
            from_ = max(begin[i], document_begin)
            piece[at], document[at], start[at] = i, order[place], from_ - document_begin
            length[at] = min(end[i], ends[place]) - from_
            document_begin = ends[place]
            at += 1


def cut_pieces_reference(
    ends: Index, order: Index, begin: Index, end: Index
) -> tuple[Index, Index, Index, Index]:
    """The same token by token: for tests."""
    lengths = np.diff(ends, prepend=0)
    document = np.repeat(order, lengths)
    within = np.concatenate([np.arange(length) for length in lengths])
    spans: list[list[int]] = []
    for i, (first, last) in enumerate(zip(begin, end, strict=True)):
        for n in range(first, last):
            if n == first or document[n] != document[n - 1] or within[n] == 0:
                spans.append([i, int(document[n]), int(within[n]), 0])
            spans[-1][3] += 1
    columns = np.array(spans, np.int64).reshape(-1, 4).T
    return columns[0], columns[1], columns[2], columns[3]
