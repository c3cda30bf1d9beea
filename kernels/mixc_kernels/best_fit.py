"""Best-fit-decreasing bin packing: documents into rows of one size.

D. S. Johnson, "Near-optimal bin packing algorithms" (1973); for documents of language models,
H. Ding et al., "Fewer truncations improve language modeling", arXiv:2404.10830. The longest
piece comes first, and each goes to the fullest row that still has room for it. Rows are kept by
the room they have left, under a binary tree, so that a piece costs O(log size).
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The row of each piece, int64[n], rows counted from 0 in the order they are begun.

    `lengths` is int64[n], each of 1..size. Pieces of one length are taken in their order.
    """
    rows = np.empty(len(lengths), np.int64)
    if len(lengths):
        if lengths.min() < 1 or lengths.max() > size:
            raise ValueError("a piece must have 1 to `size` tokens")
        _best_fit(lengths, np.argsort(-lengths, kind="stable"), size, rows)
    return rows


@numba.njit(cache=True)
def _least(tree: NDArray[np.bool_], leaves: int, length: int) -> int:  # pragma: no cover - compiled
    """The leaf of the rows with the least room that is enough; 0 if there are none."""
    at = leaves + length
    while not tree[at]:
        while at % 2 == 1:  # nothing to the right at this height
            at //= 2
        if at == 0:
            return 0
        at += 1
    while at < leaves:
        at = 2 * at if tree[2 * at] else 2 * at + 1
    return at


@numba.njit(cache=True)
def _best_fit(
    lengths: NDArray[np.int64], order: NDArray[np.int64], size: int, rows: NDArray[np.int64]
) -> None:  # pragma: no cover - compiled
    leaves = 1
    while leaves < size + 1:
        leaves *= 2
    tree = np.zeros(2 * leaves, np.bool_)  # whether a row with so much room is below
    top = np.full(size + 1, -1, np.int64)  # the row last put there
    under = np.empty(len(lengths), np.int64)  # and the one before each
    begun = 0
    for i in order:
        length = lengths[i]
        at = _least(tree, leaves, length)
        if not at:
            row, room = begun, size
            begun += 1
        else:
            room = at - leaves
            row = top[room]
            top[room] = under[row]
            if top[room] < 0:
                tree[at] = False
                at //= 2
                while at and not (tree[2 * at] or tree[2 * at + 1]):
                    tree[at] = False
                    at //= 2
        rows[i] = row
        room -= length
        if room:
            under[row] = top[room]
            top[room] = row
            at = leaves + room
            while at and not tree[at]:
                tree[at] = True
                at //= 2


def best_fit_reference(lengths: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The same, O(n rows): for tests. Of rows with equal room the last that got it is taken."""
    room: list[tuple[int, int]] = []  # (room, when it got it) of each row
    rows = np.empty(len(lengths), np.int64)
    for when, i in enumerate(np.argsort(-lengths, kind="stable")):
        length = int(lengths[i])
        open_ = [(left, -at, row) for row, (left, at) in enumerate(room) if left >= length]
        left, row = size, len(room)
        if open_:
            left, _, row = min(open_)
        else:
            room.append((0, 0))
        room[row], rows[i] = (left - length, when), row
    return rows
