"""How a domain's documents fill its rows: end to end, or whole by best fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from mixc_kernels.best_fit import best_fit
from numpy.typing import NDArray

from mixc.rows.borders import Borders
from mixc.rows.stream import DomainStream, Spans, count_up, each_of, join_spans
from mixc.rows.weights import DocumentWeights
from mixc.store.store import Store

Index = NDArray[np.int64]
_CHUNK_DOCUMENTS = 1 << 16  # a change changes what best-fit mixtures hold
_EPOCHS_HELD = 2


@dataclass(frozen=True)
class Layout:
    """How documents are laid in rows of `seq_len` tokens.

    `packing` is concat or best_fit; `weighted`, whether documents have weights.
    """

    seq_len: int
    seed: int
    packing: str = "concat"
    weighted: bool = False

    @property
    def plain(self) -> bool:
        """Whether the tokens of a domain alone tell how many rows it has."""
        return self.packing == "concat" and not self.weighted

    def open(
        self, store: Store, domains: Iterable[str], weights: DocumentWeights | None = None
    ) -> tuple[DomainStream, ...]:
        """The streams of domains; `weights` are there if the layout is weighted."""
        kind = PackedStream if self.packing == "best_fit" else DomainStream
        return tuple(
            kind(store, name, seq_len=self.seq_len, seed=self.seed, weights=weights)
            for name in domains
        )


@dataclass(frozen=True)
class _Rows:
    """The pieces of an epoch, row by row; row i has those from `first[i]` to `first[i + 1]`."""

    first: Index
    place: Index  # among the training documents
    start: Index
    length: Index


class PackedStream(DomainStream):
    """Rows of whole documents: best fit decreasing among each 65,536 of an epoch's order.

    A document is cut only if it is longer than a row: into full rows and a rest, which is packed
    as a document. The documents of a row stand in the epoch's order, and padding follows them.
    No row spans two epochs.
    """

    def _begins(self) -> Borders:
        self._rows = lru_cache(_EPOCHS_HELD)(self._pack)
        return Borders(lambda epoch: len(self._rows(epoch).first) - 1)

    def _row_step(self) -> int:
        return 1  # borders are counted in rows

    def spans(self, rows: Index) -> Spans:
        """The pieces of documents in rows (numbers in the stream, int64[n])."""
        epochs, parts = self._borders.holding(rows), []
        for epoch, mine in each_of(epochs):
            packed = self._rows(epoch)
            local = rows[mine] - self._borders.one(epoch)[0]
            count = packed.first[local + 1] - packed.first[local]
            piece = np.repeat(packed.first[local], count) + count_up(count)
            parts.append(
                Spans(
                    np.repeat(mine, count),
                    np.full(len(piece), epoch),
                    self.training[packed.place[piece]].astype(np.int64),
                    packed.start[piece],
                    packed.length[piece],
                )
            )
        return join_spans(parts)

    def _pack(self, epoch: int) -> _Rows:
        order = self.epoch_order(epoch)
        counts, parts = [], []
        for begin in range(0, len(order), _CHUNK_DOCUMENTS):
            place = order[begin : begin + _CHUNK_DOCUMENTS]
            whole = self.lengths[place].astype(np.int64)
            pieces = -(-whole // self.seq_len)
            start = count_up(pieces) * self.seq_len
            place = np.repeat(place, pieces)
            length = np.minimum(np.repeat(whole, pieces) - start, self.seq_len)
            row = best_fit(length, self.seq_len)
            by_row = np.argsort(row, kind="stable")
            counts.append(np.bincount(row))
            parts.append([place[by_row], start[by_row], length[by_row]])
        place, start, length = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        first = np.concatenate([[0], *counts]).cumsum()
        return _Rows(first, place, start, length)
