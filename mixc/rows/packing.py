"""How a domain's documents fill its rows: end to end, or whole by best fit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from mixc_kernels.best_fit import best_fit
from numpy.typing import NDArray

from mixc.rng import Stream
from mixc.rows.stream import DomainStream, Spans, count_up
from mixc.store.store import Store

Index = NDArray[np.int64]
_CHUNK_DOCUMENTS = 1 << 16  # a change changes what best-fit mixtures hold


def open_stream(
    store: Store, domain: str, *, row_len: int, seed: int, packing: str
) -> DomainStream:
    """The stream of a domain under a packing of the recipe: `concat` or `best_fit`."""
    kind = PackedStream if packing == "best_fit" else DomainStream
    return kind(store, domain, seq_len=row_len, seed=seed)


@dataclass(frozen=True)
class _Rows:
    """The pieces of an epoch, row by row; row i has those from `first[i]` to `first[i + 1]`."""

    first: Index
    place: Index  # among the training documents
    start: Index
    length: Index


class PackedStream(DomainStream):
    """Rows of whole documents, by best fit among each 65,536 of an epoch's order.

    A document is cut only if it is longer than a row: into full rows and a rest. Rows end with
    padding where nothing fits; no row spans two epochs. Where an epoch's rows begin is known
    once those before it are packed.
    """

    def __init__(self, store: Store, domain: str, *, seq_len: int, seed: int) -> None:
        super().__init__(store, domain, seq_len=seq_len, seed=seed)
        self._rows = lru_cache(4)(self._pack)
        self._first = [0]  # of each epoch whose rows are counted

    def rows_within(self, epochs: float, most: int) -> int:
        """Rows of the first so many epochs, part of the last rounded down; at most `most`."""
        if not self.epoch_tokens:
            return 0
        whole = int(min(epochs, most))
        while len(self._first) <= whole and self._first[-1] < most:
            self._count_epoch()
        if self._first[-1] >= most or whole >= len(self._first):
            return most
        part = int((epochs - whole) * (len(self._rows(whole).first) - 1))
        return min(most, self._first[whole] + part)

    def deck(self, positions: Index) -> Index:
        """The rows at positions of the deck, int64[n]: those of each epoch in a random order."""
        rows, epochs = np.empty(len(positions), np.int64), self._epochs(positions)
        for epoch in np.unique(epochs):
            mine, first = epochs == epoch, self._first[epoch]
            stream = Stream(self.seed, f"deck/{self.seq_len}", self.domain, int(epoch))
            order = stream.permutation(self._first[epoch + 1] - first)
            rows[mine] = first + order[positions[mine] - first]
        return rows

    def spans(self, rows: Index) -> Spans:
        """The pieces of documents in rows (numbers in the stream, int64[n])."""
        epochs = self._epochs(rows)
        empty = np.zeros(0, np.int64)
        parts = [Spans(empty, empty, empty, empty, empty)]
        for epoch in np.unique(epochs):
            mine = np.flatnonzero(epochs == epoch)
            packed, local = self._rows(int(epoch)), rows[mine] - self._first[epoch]
            count = packed.first[local + 1] - packed.first[local]
            piece = np.repeat(packed.first[local], count) + count_up(count)
            parts.append(
                Spans(
                    np.repeat(mine, count),
                    np.full(len(piece), epoch),
                    self.training[packed.place[piece]],
                    packed.start[piece],
                    packed.length[piece],
                )
            )
        names = ("row", "epoch", "document", "start", "length")
        joined = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
        order = np.argsort(joined[0], kind="stable")
        return Spans(*(column[order] for column in joined))

    def _epochs(self, rows: Index) -> Index:
        """The epoch of each row."""
        last = int(rows.max(initial=-1))
        while self._first[-1] <= last:
            self._count_epoch()
        return np.searchsorted(np.array(self._first), rows, side="right") - 1

    def _count_epoch(self) -> None:
        epoch = len(self._first) - 1
        self._first.append(self._first[epoch] + len(self._rows(epoch).first) - 1)

    def _pack(self, epoch: int) -> _Rows:
        order = self.epoch_order(epoch)
        parts, rows = [], 0
        for begin in range(0, len(order), _CHUNK_DOCUMENTS):
            place = order[begin : begin + _CHUNK_DOCUMENTS]
            pieces = -(-self.lengths[place] // self.seq_len)
            start = count_up(pieces) * self.seq_len
            place = np.repeat(place, pieces)
            length = np.minimum(self.lengths[place] - start, self.seq_len)
            row = best_fit(length, self.seq_len)
            by_row = np.argsort(row, kind="stable")
            parts.append([rows + row[by_row], place[by_row], start[by_row], length[by_row]])
            rows += int(row.max()) + 1
        row, place, start, length = (
            np.concatenate(columns) for columns in zip(*parts, strict=True)
        )
        return _Rows(np.searchsorted(row, np.arange(rows + 1)), place, start, length)
