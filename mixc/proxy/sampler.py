"""The batches that small models are trained on: rows of the domains' decks, in a fixed order.

A domain's rows come in the order of its deck, whatever the weights, so that runs under different
weights see the same rows of a domain in the same order. Which domains a batch draws from is
decided elsewhere, step by step, as counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixc.proxy.train import Batch
from mixc.rng import Stream
from mixc.rows.stream import DomainStream, count_up, each_of

Index = NDArray[np.int64]
# Starts an iterator over the steps, from step 0: the rows of each deck in its batch, int64[K].
Counts = Callable[[], Iterator[Index]]
_HELD_BYTES, _BLOCK_ROWS = 1 << 25, 64
_PASSES_HELD = 2


class Decks:
    """The rows of K domains. A domain's deck is endless: all its rows, epoch after epoch.

    With `prefix_rows`, int64[K], it is the first so many rows of the deck instead, again and
    again, from the second pass on in a fresh permutation a pass.

    Rows are read some at a time and held until the next are asked for: 32 MiB of tokens over all
    domains, but at least two rows of each.
    """

    def __init__(
        self, streams: Sequence[DomainStream], *, seed: int, prefix_rows: Index | None = None
    ) -> None:
        self.streams, self.seed, self.prefix_rows = tuple(streams), seed, prefix_rows
        self.seq_len = self.streams[0].seq_len
        row_bytes = self.seq_len * self.streams[0].tokens(np.zeros(0, np.int64)).itemsize
        self._block = min(_BLOCK_ROWS, max(1, _HELD_BYTES // (2 * len(streams) * row_bytes)))
        self._read = lru_cache(2 * len(streams))(self._read_block)
        self._pass = lru_cache(_PASSES_HELD * len(streams))(self._shuffle_pass)

    def rows(self, domain: int, positions: Index) -> Index:
        """The numbers in the domain's stream of the rows at positions, int64[n]."""
        if self.prefix_rows is not None:
            passes, positions = np.divmod(positions, self.prefix_rows[domain])
            for number, mine in each_of(passes):
                if number:
                    positions[mine] = self._pass(domain, number)[positions[mine]]
        return self.streams[domain].deck(positions)

    def read(self, domain: int, first: int, count: int) -> tuple[Index, NDArray[np.generic]]:
        """`count` rows from position `first` on: their numbers [n], their tokens [n, seq_len]."""
        numbers, tokens = [], []
        for block in range(first // self._block, -(-(first + count) // self._block)):
            begin = block * self._block
            part = slice(max(first - begin, 0), first + count - begin)
            rows, values = self._read(domain, block)
            numbers.append(rows[part])
            tokens.append(values[part])
        return np.concatenate(numbers), np.concatenate(tokens)

    def _read_block(self, domain: int, block: int) -> tuple[Index, NDArray[np.generic]]:
        positions = np.arange(block * self._block, (block + 1) * self._block)
        rows = self.rows(domain, positions)
        return rows, self.streams[domain].tokens(rows)

    def _shuffle_pass(self, domain: int, number: int) -> Index:
        assert self.prefix_rows is not None
        stream = Stream(self.seed, f"prefix/{self.seq_len}", self.streams[domain].name, number)
        return stream.permutation(int(self.prefix_rows[domain]))


class Sampler:
    """`Batches`: the batch of a step. Its rows stand by domain, each domain's in deck order.

    `ids` maps the store's token ids to those of the model, int64[V]; by default they are the same.
    `numbers`, int64[K], are those of the decks' domains in the batches; by default their places.
    `known_steps` batches follow from the counts alone; None: counts may depend on the run itself.
    Steps are cheapest in order; an earlier one than the last is counted anew from step 0.

    With a `share` below 1, a part of the batches: so many of each domain's rows, evenly over the
    run from the first on.
    """

    def __init__(
        self,
        decks: Decks,
        counts: Counts,
        ids: Index | None = None,
        known_steps: int | None = None,
        share: float = 1.0,
        numbers: Index | None = None,
    ) -> None:
        self._decks, self._counts, self._ids = decks, counts, ids
        self.known_steps, self._share = known_steps, share
        self._numbers = np.arange(len(decks.streams)) if numbers is None else numbers
        self._begin()

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        tokens = self._of_part(step, np.concatenate([values for _, values in self._read(step)]))
        wide = tokens.astype(np.int64) if self._ids is None else self._ids[tokens]
        return Batch(wide, self.domains(step))

    def domains(self, step: int) -> Index:
        """The domain of each row of a step's batch, int64[B]."""
        _, counts = self._at(step)
        return self._of_part(step, np.repeat(self._numbers, counts))

    def rows(self, step: int) -> Index:
        """The number in its domain's stream of each row of a step's batch, int64[B]."""
        return self._of_part(step, np.concatenate([rows for rows, _ in self._read(step)]))

    def part(self, share: float) -> Sampler:
        """A part of these batches: see above."""
        return Sampler(self._decks, self._counts, self._ids, self.known_steps, share, self._numbers)

    def places(self, step: int) -> Index:
        """Where the rows of a step's batch, or of the part of it, stand in the whole, int64[B]."""
        before, counts = self._at(step)
        number = np.repeat(before, counts) + count_up(counts)
        due = rows_of_part(number + 1, self._share) > rows_of_part(number, self._share)
        return np.flatnonzero(due)

    def _of_part(self, step: int, rows: NDArray[Any]) -> NDArray[Any]:
        """Of what there is for each row of the whole batch, that of the part's rows."""
        return rows if self._share == 1 else rows[self.places(step)]

    def _read(self, step: int) -> list[tuple[Index, NDArray[np.generic]]]:
        before, counts = self._at(step)
        return [
            self._decks.read(k, int(before[k]), int(counts[k]))
            for k in np.flatnonzero(counts).tolist()
        ]

    def _begin(self) -> None:
        size = len(self._decks.streams)
        self._steps, self._step = self._counts(), -1
        self._before, self._now = np.zeros(size, np.int64), np.zeros(size, np.int64)

    def _at(self, step: int) -> tuple[Index, Index]:
        """The rows of each deck before a step, and in it."""
        if step < self._step:
            self._begin()
        while self._step < step:
            now = next(self._steps)
            self._before, self._now, self._step = self._before + self._now, now, self._step + 1
        return self._before, self._now


def rows_of_part(rows: Index, share: float) -> Index:
    """How many of a deck's first `rows` rows stand in a part of the batches, int64."""
    due: Index = np.ceil(rows * share).astype(np.int64)
    return due


def counts_of(labels: NDArray[np.unsignedinteger], size: int, domains: int) -> Counts:
    """The counts of batches of `size` rows, cut from the domains of all rows, uint[R]."""

    def steps() -> Iterator[Index]:
        for first in range(0, len(labels), size):
            yield np.bincount(labels[first : first + size], minlength=domains)

    return steps


def scheduled_counts(policy: Callable[[int], NDArray[np.float64]], size: int) -> Counts:
    """The counts of batches of `size` rows under weights that change: those of step t are
    `policy(t)`, on the simplex, [K], asked for once t is reached.

    Row by row, each domain is owed its weight more, and the one that is owed most gives the row;
    what is owed is carried from step to step. No domain is ever a row ahead of what it was owed,
    and none more than 1 + 1/2 + ... + 1/K rows behind (the cup game of Dietz and Sleator, STOC
    1987): without the weights to come, the bound of Tijdeman cannot be had.
    """

    def steps() -> Iterator[Index]:
        owed: NDArray[np.float64] | None = None
        step = 0
        while True:
            weights = policy(step)
            owed = np.zeros(len(weights)) if owed is None else owed
            counts = np.zeros(len(weights), np.int64)
            for _ in range(size):
                owed += weights
                first = int(owed.argmax())
                owed[first] -= 1
                counts[first] += 1
            yield counts
            step += 1

    return steps
