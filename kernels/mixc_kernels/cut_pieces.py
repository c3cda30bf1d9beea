"""Which documents pieces of a stream are cut from: the inner loop of a domain's packed stream."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Narrow = NDArray[np.uint32] | Index


def index_stream(ends: Index, step: int) -> Narrow:
    """The first document that ends behind each multiple of `step` in a stream, as `cut_pieces`
    takes it: int64[ceil(size / step)], or uint32 if that is enough.
    """
    size = int(ends[-1]) if len(ends) else 0
    count, small = -(-size // step), len(ends) < 1 << 32
    out: Narrow = np.empty(count, np.uint32) if small else np.empty(count, np.int64)
    _index_stream(ends, step, out)
    return out


def cut_pieces(
    ends: Index, order: Narrow, index: Narrow, step: int, begin: Index, end: Index
) -> tuple[Index, Index, Index, Index]:
    """The spans that pieces `begin[i]` to `end[i]` of a stream are made of, in order.

    The stream is documents end to end: the n-th is number `order[n]`, has at least one token, and
    ends at `ends[n]`; `index` is `index_stream(ends, step)`. All are int64, `order` and `index`
    perhaps uint32; pieces are not empty and lie within the stream. Of each span: its piece, its
    document's number, its first token in the document, and its length, int64[m].
    """
    first, count = np.empty(len(begin), np.int64), np.empty(len(begin), np.int64)
    size = _count_pieces(ends, index, step, begin, end, first, count)
    out = tuple(np.empty(size, np.int64) for _ in range(4))
    _cut_pieces(ends, order, begin, end, first, count, *out)
    return out[0], out[1], out[2], out[3]


@numba.njit(cache=True, nogil=True)
def _index_stream(ends: Index, step: int, out: Narrow) -> None:  # pragma: no cover - compiled
    low = 0
    for i in range(len(out)):
        while ends[low] <= i * step:
            low += 1
        out[i] = low


@numba.njit(cache=True, nogil=True)
def _count_pieces(
    ends: Index, index: Narrow, step: int, begin: Index, end: Index, first: Index, count: Index
) -> int:  # pragma: no cover - compiled
    """The first document of each piece, how many it touches, and the sum of them.

    Searching takes as long as all that is done with what is found; the index says where to begin.
    """
    size = 0
    for i in range(len(begin)):
        low = np.int64(index[begin[i] // step])
        while ends[low] <= begin[i]:
            low += 1
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


def index_stream_reference(ends: Index, step: int) -> Index:
    """The same in plain numpy: for tests."""
    size = int(ends[-1]) if len(ends) else 0
    return np.searchsorted(ends, np.arange(0, size, step), side="right")


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
