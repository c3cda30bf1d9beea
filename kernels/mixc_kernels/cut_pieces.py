"""Which documents pieces of a stream are cut from: the inner loop of a domain's packed stream."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Narrow = NDArray[np.uint32] | Index


def cut_pieces(
    ends: Index, order: Narrow, lengths: Narrow, begin: Index, end: Index
) -> tuple[Index, Index, Index, Index]:
    """The spans that pieces `begin[i]` to `end[i]` of a stream are made of, in order.

    The stream is documents end to end: the n-th is number `order[n]`, of `lengths[order[n]]`
    tokens, all at least one, and ends at `ends[n]`. All are int64, `order` and `lengths` perhaps
    uint32; pieces are not empty and lie within the stream. Of each span: its piece, its
    document's number, its first token in the document, and its length, int64[m].
    """
    first = np.searchsorted(ends, begin, side="right")
    count = np.searchsorted(ends, end - 1, side="right") - first + 1
    size = int(count.sum())
    out = tuple(np.empty(size, np.int64) for _ in range(4))
    _cut_pieces(ends, order, lengths, begin, end, first, count, *out)
    return out[0], out[1], out[2], out[3]


@numba.njit(cache=True, nogil=True)
def _cut_pieces(
    ends: Index,
    order: Narrow,
    lengths: Narrow,
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
        for place in range(first[i], first[i] + count[i]):
            number = order[place]
            document_begin = ends[place] - lengths[number]
            from_ = max(begin[i] - document_begin, 0)
            piece[at], document[at], start[at] = i, number, from_
            length[at] = min(end[i] - document_begin, lengths[number]) - from_
            at += 1


def cut_pieces_reference(
    ends: Index, order: Index, lengths: Index, begin: Index, end: Index
) -> tuple[Index, Index, Index, Index]:
    """The same token by token: for tests."""
    document = np.repeat(order, lengths[order])[: ends[-1]]
    within = np.concatenate([np.arange(lengths[number]) for number in order])
    spans: list[list[int]] = []
    for i, (first, last) in enumerate(zip(begin, end, strict=True)):
        for n in range(first, last):
            if n == first or document[n] != document[n - 1] or within[n] == 0:
                spans.append([i, int(document[n]), int(within[n]), 0])
            spans[-1][3] += 1
    columns = np.array(spans, np.int64).reshape(-1, 4).T
    return columns[0], columns[1], columns[2], columns[3]
