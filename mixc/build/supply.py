"""What the domains of a store can give to a mixture, laid out in its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixc.build.counts import capacity
from mixc.errors import MixcError
from mixc.rows.packing import Layout
from mixc.rows.stream import AT_ONCE, DomainStream
from mixc.rows.weights import DocumentWeights
from mixc.store.store import Store

Real = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Supply:
    """The domains in their order: training tokens, int64[K], and streams.

    A plain layout needs no streams: there the tokens say all. `weights` are those of documents.
    """

    layout: Layout
    tokens: Index
    streams: tuple[DomainStream, ...] = ()
    weights: DocumentWeights | None = None

    @property
    def known(self) -> int:
        """Training documents that have a weight of their own."""
        return sum(stream.weighted for stream in self.streams)

    def room(self, rows: int, max_epochs: float | None) -> Index:
        """Rows that each domain can give to a mixture of `rows` rows, int64[K]."""
        if self.layout.plain:
            return capacity(
                self.tokens, rows=rows, seq_len=self.layout.seq_len, max_epochs=max_epochs
            )
        cap = np.inf if max_epochs is None else max_epochs
        return np.array([one.rows_within(cap, rows) for one in self.streams], np.int64)

    def epochs(self, rows: Index) -> list[float]:
        """Epochs that the rows of each domain (int64[K]) take."""
        if self.layout.plain:
            shares = rows * self.layout.seq_len / np.maximum(self.tokens, 1)
            return [float(share) for share in shares]
        pairs = zip(self.streams, rows.tolist(), strict=True)
        return [stream.epochs_of(count) for stream, count in pairs]

    def drawn(self, taken: Mapping[str, Mapping[int, int]]) -> dict[str, dict[int, int]] | None:
        """Tokens drawn by documents' weights in each epoch that was begun, by domain.

        `taken[domain]` has the epochs that rows were taken from.
        """
        if self.weights is None:
            return None
        return {
            stream.domain: {
                number: stream.drawn(number)
                for number in range(max(taken.get(stream.domain, {}), default=-1) + 1)
            }
            for stream in self.streams
        }


def make_supply(
    store: Store, domains: Sequence[str], layout: Layout, weights: DocumentWeights | None
) -> Supply:
    """Open what the layout needs. Raises MX061 if the weights name no document of the store."""
    tokens = np.array([store.domains[name].training_tokens for name in domains], np.int64)
    if layout.plain:
        return Supply(layout, tokens)
    supply = Supply(layout, tokens, layout.open(store, domains, weights), weights)
    if weights is not None and not supply.known:
        raise MixcError(
            "MX061",
            "the weights of documents name none of those that the store has for training",
            help="`mixc inspect` shows the ids of documents; they are hashes of the text",
        )
    return supply


def opened(
    supply: Supply, store: Store, domains: Sequence[str], *, workers: int, rows: Index | None = None
) -> Supply:
    """The supply with the streams of the domains, those of which rows are taken laid out.

    `rows`, int64[K], says how many; without it none is laid out before it is asked for.
    """
    _ = store.all_held_ids  # read once, before threads ask for it

    def open_stream(number: int) -> DomainStream:
        there = supply.streams
        found = there[number] if there else supply.layout.open(store, [domains[number]])[0]
        if rows is not None and rows[number]:
            found.spans(found.deck(np.zeros(1, np.int64)))
        return found

    with ThreadPoolExecutor(min(workers, AT_ONCE)) as crew:
        return replace(supply, streams=tuple(crew.map(open_stream, range(len(domains)))))
