"""A domain's stream: its training documents, in a fresh order each epoch, end to end.

Nothing of the stream is stored. Where any row of it comes from follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Semaphore
from typing import Any

import numpy as np
from mixc_kernels.cut_pieces import cut_pieces, index_stream
from mixc_kernels.gather_spans import gather_spans
from numpy.typing import NDArray

from mixc.errors import MixcError, Place
from mixc.rng import Stream
from mixc.rows.borders import Borders
from mixc.rows.columns import Columns, open_columns
from mixc.rows.weights import ONE, DocumentWeights, draw
from mixc.store.holdout import among
from mixc.store.store import Store

Index = NDArray[np.int64]
Narrow = NDArray[np.uint32] | Index
AT_ONCE = 4  # domains whose epochs are put in order at a time, which takes memory
_TURNS = Semaphore(AT_ONCE)
EPOCHS_HELD = 3  # the rows of a block lie in two at most, and begin in the one before


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
    order: Narrow  # training documents in this epoch's order
    ends: Index  # where each ends in the epoch's stream
    index: Narrow  # which of them the epoch's rows begin in


class DomainStream:
    """The stream of one domain, cut into rows of `seq_len` tokens.

    With `weights`, an epoch has each document as often as it is drawn (`mixc.rows.weights`), and
    its size changes. `name`, by default the domain's, names its random streams. Raises MX061 if a
    domain's documents weigh too little or too much.
    """

    def __init__(
        self,
        store: Store,
        domain: str,
        *,
        seq_len: int,
        seed: int,
        weights: DocumentWeights | None = None,
        name: str | None = None,
    ) -> None:
        self.domain, self.seq_len, self.seed = domain, seq_len, seed
        self.name = domain if name is None else name
        self.shards = list(store.documents(domain))
        self._dtype, self._eot_id = store.dtype, store.eot_id
        counts = [len(shard) for shard in self.shards]
        self.first_document = np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]
        )
        lengths = _joined([shard.lengths for shard in self.shards], np.int64)
        ids = _joined([shard.doc_id for shard in self.shards], np.uint64)
        if len(lengths) and lengths.min() < 1:
            raise MixcError(
                "MX040",
                f"the shards of domain '{domain}' are damaged: a document without tokens",
                place=Place(str(store.root / domain)),
                help="run `mixc verify` on the store",
            )
        training = np.flatnonzero(~among(ids, store.all_held_ids))
        # There may be 10^9 documents: no more is held of each than must be.
        self.training, self.lengths = narrow(training), narrow(lengths[training])
        self.epoch_tokens = int(self.lengths.sum(dtype=np.int64))  # were all weights 1
        self._units, self.weighted = None, 0
        if weights is not None:
            self._units, given = weights.of(ids[self.training])
            self.weighted = int(given.sum())
            self._check_weights()
        self._epoch = lru_cache(EPOCHS_HELD)(self._lay_out_epoch)
        self._deck_order = lru_cache(EPOCHS_HELD)(self._shuffle_rows)
        self._borders, self._step = self._begins(), self._row_step()

    def _check_weights(self) -> None:
        # In float64: an int64 may overflow.
        total = self._units.sum(dtype=np.float64) if self._units is not None else 0.0
        if 0 < total < ONE or total >= 1 << 62:
            raise MixcError(
                "MX061",
                f"the documents of domain '{self.domain}' weigh {total / ONE:.3g} in all, which "
                f"gives epochs without {'a document' if total < ONE else 'end'}",
                help="scale the weights of documents, so that about 1 is the rule",
            )

    @property
    def empty(self) -> bool:
        """Whether its epochs hold nothing."""
        return not (len(self.training) if self._units is None else self._units.any())

    def drawn(self, epoch: int) -> int:
        """Tokens of the documents of an epoch, each as often as it is drawn."""
        return int(self.lengths[self.epoch_order(epoch)].sum(dtype=np.int64))

    def _begins(self) -> Borders:
        if self._units is None:
            return Borders(self.epoch_tokens)
        return Borders(lambda epoch: int(self._epoch(epoch).ends[-1]))

    def _row_step(self) -> int:
        """How far it is from row to row, in what the borders of epochs are counted in."""
        return self.seq_len

    def rows_within(self, epochs: float, most: int) -> int:
        """Rows of the first so many epochs, a part of the last rounded down; `most` at most."""
        if self.empty or epochs == np.inf:  # epochs without end need not be laid out
            return 0 if self.empty else most
        return self._borders.within(epochs, most * self._step) // self._step

    def epochs_of(self, rows: int) -> float:
        """Epochs that the first `rows` rows of the deck take."""
        if not rows:
            return 0.0
        place = rows * self._step
        epoch = int(self._borders.holding(np.array([place - 1]))[0])
        begin, end = self._borders.one(epoch)
        return epoch + (place - begin) / (end - begin)

    def deck(self, positions: Index) -> Index:
        """The rows at positions of the deck, int64[n] to int64[n].

        The deck is the rows of epoch 0 in a random order, then those of epoch 1, and so on. A
        row belongs to the epoch in which its last token lies, so the first rows of the deck
        that fit in e epochs of tokens never touch epoch e + 1.
        """
        rows = np.empty(len(positions), np.int64)
        epochs = self._borders.holding((positions + 1) * self._step - 1)
        for epoch, mine in each_of(epochs):
            first, order = self._deck_order(epoch)
            rows[mine] = order[positions[mine] - first].astype(np.int64) + first
        return rows

    def _shuffle_rows(self, epoch: int) -> tuple[int, Narrow]:
        first, stop = (place // self._step for place in self._borders.one(epoch))
        stream = Stream(self.seed, f"deck/{self.seq_len}", self.name, epoch)
        with _TURNS:
            return first, narrow(stream.permutation(stop - first))

    def spans(self, rows: Index) -> Spans:
        """The pieces of documents that rows (numbers in the stream, int64[n]) are cut from."""
        first, last = rows * self.seq_len, (rows + 1) * self.seq_len
        first_epoch = self._borders.holding(first)
        pieces = self._borders.holding(last - 1) - first_epoch + 1
        row = np.repeat(np.arange(len(rows)), pieces)
        epoch = first_epoch[row] + count_up(pieces)
        base = self._borders.begin(epoch)
        begin = np.maximum(first[row], base) - base
        end = np.minimum(last[row], self._borders.begin(epoch + 1)) - base
        parts = []
        for number, mine in each_of(epoch):
            parts.append(self._within(number, row[mine], begin[mine], end[mine]))
        return join_spans(parts)

    def _within(self, number: int, row: Index, begin: Index, end: Index) -> Spans:
        """The spans of pieces that lie in one epoch."""
        epoch = self._epoch(number)
        stream = epoch.ends, epoch.order, epoch.index, self.seq_len
        piece, local, start, length = cut_pieces(*stream, begin, end)
        epochs = np.full(len(piece), number)
        document = self.training[local].astype(np.int64)
        return Spans(row[piece], epochs, document, start, length)

    def epoch_order(self, epoch: int) -> Index:
        """The training documents in the order of an epoch, int64[n]."""
        if self._units is not None:
            return draw(self._units, seed=self.seed, domain=self.name, epoch=epoch)
        return Stream(self.seed, "documents", self.name, epoch).permutation(len(self.training))

    def _lay_out_epoch(self, epoch: int) -> _Epoch:
        with _TURNS:
            order = narrow(self.epoch_order(epoch))
            ends = np.cumsum(self.lengths[order], dtype=np.int64)
            return _Epoch(order, ends, index_stream(ends, self.seq_len))

    @cached_property
    def _columns(self) -> Columns:
        return open_columns(self.shards)

    def doc_ids(self, document: Index) -> NDArray[np.uint64]:
        """The ids of documents, uint64[m]."""
        return self._columns.doc_ids(*self.locate(document))

    def locate(self, document: Index) -> tuple[Index, Index]:
        """The shard of each document, and its number there."""
        shard = np.searchsorted(self.first_document, document, side="right") - 1
        return shard, document - self.first_document[shard]

    def fill(self, spans: Spans, targets: Index, out: NDArray[np.generic]) -> None:
        """Copy spans to their places in the flat buffer `out`."""
        shard, local = self.locate(spans.document)
        at = self._columns.begins(shard, local) + spans.start
        gather_spans(self._columns.tokens, shard, at, targets, spans.length, out)

    def tokens(self, rows: Index) -> NDArray[np.generic]:
        """The tokens of rows, [n, seq_len]; what no span covers is padding, the end of text."""
        spans = self.spans(rows)
        out = np.full(len(rows) * self.seq_len, self._eot_id, self._dtype)
        self.fill(spans, spans.row * self.seq_len + within_rows(spans.row, spans.length), out)
        return out.reshape(len(rows), self.seq_len)


_FIELDS = ("row", "epoch", "document", "start", "length")


def narrow(values: Index) -> Narrow:
    """Numbers of 0 or more as uint32, if they all fit."""
    return values.astype(np.uint32) if not len(values) or values.max() < 1 << 32 else values


def join_spans(parts: list[Spans]) -> Spans:
    """Spans of several epochs, each in order, put in order: by row, then by epoch."""
    if len(parts) == 1:
        return parts[0]
    joined = Spans(*(_joined([getattr(p, f) for p in parts], np.int64) for f in _FIELDS))
    order = np.lexsort((joined.epoch, joined.row))  # stable: pieces of an epoch are in order
    return Spans(*(getattr(joined, name)[order] for name in _FIELDS))


def within_rows(row: Index, length: Index) -> Index:
    """Where in its row each span begins, int64[m]; the spans of a row follow each other."""
    begin = targets(length)
    first = np.concatenate([np.ones(len(row[:1]), bool), row[1:] != row[:-1]])
    return begin - begin[np.maximum.accumulate(np.where(first, np.arange(len(row)), 0))]


def each_of(epochs: Index) -> Iterator[tuple[int, Index]]:
    """Each of a few epochs, and where it stands: everywhere, as a rule."""
    if len(epochs) and epochs.min() == epochs.max():
        yield int(epochs[0]), np.arange(len(epochs))
        return
    for epoch in np.unique(epochs).tolist():
        yield epoch, np.flatnonzero(epochs == epoch)


def targets(lengths: Index) -> Index:
    """Where spans of these lengths begin when laid end to end."""
    return np.cumsum(lengths) - lengths


def count_up(counts: Index) -> Index:
    """0..counts[0]-1, 0..counts[1]-1, ... end to end."""
    return np.arange(int(counts.sum())) - np.repeat(targets(counts), counts)


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
