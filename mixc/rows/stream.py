"""A domain's packed stream: its training documents, in a fresh order each epoch, end to end.

Nothing of the stream is stored. Where any row of it comes from follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from mixc_kernels.copy_spans import copy_spans
from mixc_kernels.cut_pieces import cut_pieces
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.rng import Stream
from mixc.store.shard import Documents
from mixc.store.store import Store

Index = NDArray[np.int64]
_EPOCHS_HELD = 4


@dataclass(frozen=True)
class Spans:
    """Pieces of documents that make up rows, in order. All int64[m].

    `row` is the position in the request, `document` counts all documents of the domain in the
    store's order, `start` and `length` are tokens within the document.
    """

    row: Index
    epoch: Index
    document: Index
    start: Index
    length: Index


@dataclass(frozen=True)
class _Epoch:
    order: Index  # training documents in this epoch's order
    ends: Index  # where each ends in the epoch's stream


class DomainStream:
    """The packed stream of one domain, cut into rows of `seq_len` tokens."""

    def __init__(self, store: Store, domain: str, *, seq_len: int, seed: int) -> None:
        self.domain, self.seq_len, self.seed = domain, seq_len, seed
        self._shards = list(store.documents(domain))
        self._dtype = store.dtype
        counts = [len(shard) for shard in self._shards]
        self.first_document = np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]
        )
        lengths = _joined([shard.lengths for shard in self._shards], np.int64)
        ids = _joined([shard.doc_id for shard in self._shards], np.uint64)
        if len(lengths) and lengths.min() < 1:
            raise MixcError(
                "MX040",
                f"the shards of domain '{domain}' are damaged: a document without tokens",
                place=Place(str(store.root / domain)),
                help="run `mixc verify` on the store",
            )
        self._training = np.flatnonzero(~np.isin(ids, store.all_held_ids))
        self._lengths = lengths[self._training]
        self.epoch_tokens = int(self._lengths.sum())
        self._epoch = lru_cache(_EPOCHS_HELD)(self._lay_out_epoch)
        self._deck_order = lru_cache(_EPOCHS_HELD)(self._shuffle_rows)

    def deck(self, positions: Index) -> Index:
        """The rows at positions of the deck, int64[n] to int64[n].

        The deck is the rows of epoch 0 in a random order, then those of epoch 1, and so on. A
        row belongs to the epoch in which its last token lies, so the first rows of the deck
        that fit in e epochs of tokens never touch epoch e + 1.
        """
        rows = np.empty(len(positions), np.int64)
        epochs = ((positions + 1) * self.seq_len - 1) // self.epoch_tokens
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            first, order = self._deck_order(int(epoch))
            rows[mine] = first + order[positions[mine] - first]
        return rows

    def _shuffle_rows(self, epoch: int) -> tuple[int, Index]:
        first = epoch * self.epoch_tokens // self.seq_len
        count = (epoch + 1) * self.epoch_tokens // self.seq_len - first
        stream = Stream(self.seed, f"deck/{self.seq_len}", self.domain, epoch)
        return first, stream.permutation(count)

    def spans(self, rows: Index) -> Spans:
        """The pieces of documents that rows (numbers in the stream, int64[n]) are cut from."""
        first, last = rows * self.seq_len, (rows + 1) * self.seq_len
        first_epoch = first // self.epoch_tokens
        pieces = (last - 1) // self.epoch_tokens - first_epoch + 1
        row = np.repeat(np.arange(len(rows)), pieces)
        epoch = first_epoch[row] + _count_up(pieces)
        base = epoch * self.epoch_tokens
        begin = np.maximum(first[row], base) - base
        end = np.minimum(last[row], base + self.epoch_tokens) - base
        parts = []
        for number in np.unique(epoch):
            mine = np.flatnonzero(epoch == number)
            parts.append(self._within(int(number), row[mine], begin[mine], end[mine]))
        if len(parts) == 1:
            return parts[0]
        joined = Spans(*(_joined([getattr(p, f) for p in parts], np.int64) for f in _FIELDS))
        order = np.lexsort((joined.epoch, joined.row))  # stable: pieces of an epoch are in order
        return Spans(*(getattr(joined, name)[order] for name in _FIELDS))

    def _within(self, number: int, row: Index, begin: Index, end: Index) -> Spans:
        """The spans of pieces that lie in one epoch."""
        epoch = self._epoch(number)
        piece, local, start, length = cut_pieces(epoch.ends, epoch.order, self._lengths, begin, end)
        epochs = np.full(len(piece), number)
        return Spans(row[piece], epochs, self._training[local], start, length)

    def _lay_out_epoch(self, epoch: int) -> _Epoch:
        stream = Stream(self.seed, "documents", self.domain, epoch)
        order = stream.permutation(len(self._training))
        return _Epoch(order, np.cumsum(self._lengths[order]))

    def doc_ids(self, document: Index) -> NDArray[np.uint64]:
        """The ids of documents, uint64[m]."""
        shard, local = self.locate(document)
        out = np.empty(len(document), np.uint64)
        for number in np.unique(shard):
            mine = shard == number
            out[mine] = self._shards[number].doc_id[local[mine]]
        return out

    def locate(self, document: Index) -> tuple[Index, Index]:
        """The shard of each document, and its number there."""
        shard = np.searchsorted(self.first_document, document, side="right") - 1
        return shard, document - self.first_document[shard]

    def shard(self, number: int) -> Documents:
        """One shard of the domain."""
        return self._shards[number]

    def fill(self, spans: Spans, targets: Index, out: NDArray[np.generic]) -> None:
        """Copy spans to their places in the flat buffer `out`, in the order of the source."""
        shard, local = self.locate(spans.document)
        for number in np.unique(shard):
            mine = np.flatnonzero(shard == number)
            documents = self._shards[number]
            starts = documents.offsets[local[mine]] + spans.start[mine]
            by_source = np.argsort(starts, kind="stable")
            mine = mine[by_source]
            copy_spans(documents.tokens, starts[by_source], targets[mine], spans.length[mine], out)

    def tokens(self, rows: Index) -> NDArray[np.generic]:
        """The tokens of rows, [n, seq_len]."""
        spans = self.spans(rows)
        out = np.empty(len(rows) * self.seq_len, self._dtype)
        self.fill(spans, targets(spans.length), out)
        return out.reshape(len(rows), self.seq_len)


_FIELDS = ("row", "epoch", "document", "start", "length")


def targets(lengths: Index) -> Index:
    """Where spans of these lengths begin when laid end to end."""
    return np.cumsum(lengths) - lengths


def _count_up(counts: Index) -> Index:
    """0..counts[0]-1, 0..counts[1]-1, ... end to end."""
    return np.arange(int(counts.sum())) - np.repeat(targets(counts), counts)


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
