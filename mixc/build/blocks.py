"""What an output block is: which rows it holds, and where each of them comes from.

A block is a pure function of the plan and its number: any worker may make any block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
from mixc_kernels.gather_spans import Pool, populate
from mixc_kernels.sort_columns import sort_columns
from numpy.typing import NDArray

from mixc.build.provenance import BlockRows
from mixc.build.supply import Supply, opened
from mixc.rows.columns import Columns, open_columns
from mixc.rows.packing import Layout
from mixc.rows.stream import AT_ONCE, DomainStream, Spans, targets
from mixc.store.parts import Window, unreadable
from mixc.store.store import Store

Index = NDArray[np.int64]


@dataclass(frozen=True)
class BlockTask:
    """Rows `first` to `first + len(labels)` of the mixture.

    `labels` is the domain of each row, `positions` where in each domain's deck the block begins,
    int64[K], and `known` the digest of the block if an earlier run has staged it.
    """

    number: int
    first: int
    labels: NDArray[np.uint16]
    positions: NDArray[np.int64]
    known: str | None


@dataclass(frozen=True)
class Builder:
    """What workers share.

    `locks` has one for each domain's stream. `columns` are those of every shard, domain by domain:
    of domain d from shard `first_shard[d]` on, int64[K]. `padding` is a row of ends of text. Rows
    are full, and have none, where it is None. `files` are the shards' own, of `sizes` bytes.
    `turn` is had by who writes: a file takes one at a time, and who waits there uses a core.
    `published`: what `path` is another name of, if it is; then it is read and never written to.
    `tables`: whether tables of rows' sources are made. `cold`: the store is read from the disk.
    `ahead`: which shards were read ahead, bool[shards].
    `windows`: what blocks go through past the page cache, taken in turns: as many as there are
    blocks at a time, one more than threads. There are none where they go through the page cache.
    """

    domains: tuple[str, ...]
    streams: tuple[DomainStream, ...]
    locks: tuple[Lock, ...]
    columns: Columns
    first_shard: Index
    seq_len: int
    dtype: np.dtype[Any]
    padding: NDArray[Any] | None
    files: tuple[Path, ...]
    sizes: Index
    ahead: NDArray[np.bool_]
    path: Path
    turn: Lock
    published: Path | None = None
    tables: bool = True
    windows: tuple[Window, ...] = ()
    cold: Event = field(default_factory=Event)

    def read_ahead(self, domains: Sequence[str], *, workers: int) -> None:
        """Bring all tokens of domains into memory, in long runs, rather than page by page.

        What cannot be read is asked for again, and named, where it is needed.
        """
        pool = self.columns.tokens
        wanted = [self.domains.index(name) for name in domains]
        shards = [i for domain in wanted for i in self.shards_of(domain)]
        sizes = pool.sizes * self.dtype.itemsize

        def read(shard: int) -> None:
            one = slice(shard, shard + 1)
            self.ahead[shard] = populate(pool.addresses[one], sizes[one]) is None

        with ThreadPoolExecutor(workers) as crew:
            list(crew.map(read, shards))

    def shards_of(self, domain: int) -> range:
        """The numbers of a domain's shards."""
        first = int(self.first_shard[domain])
        return range(first, first + len(self.streams[domain].shards))


@dataclass(frozen=True)
class Origin:
    """Where tokens are copied from: span i from `at[i]` on in `pool.values[source[i]]`, int64.

    `files` are those that the arrays of the pool are mapped from; `ahead` says which of them were
    read already, and may be read without asking the system first, bool[arrays].
    """

    pool: Pool
    source: Index
    at: Index
    files: tuple[Path, ...]
    ahead: NDArray[np.bool_]


Finder = Callable[[Builder, BlockTask, BlockRows], Origin]


def from_store(builder: Builder, task: BlockTask, rows: BlockRows) -> Origin:  # noqa: ARG001
    """The tokens of a block, where they stand in the store.

    Raises MX040 if a file that was read ahead is not there any more, or was cut.
    """
    used = np.bincount(rows.shard, minlength=len(builder.files)) > 0
    for shard in np.flatnonzero(used & builder.ahead).tolist():
        path = builder.files[shard]
        try:
            whole = path.stat().st_size >= builder.sizes[shard]
        except OSError:
            whole = False
        if not whole:
            raise unreadable(path)
    return Origin(builder.columns.tokens, rows.shard, rows.at, builder.files, builder.ahead)


def make_builder(
    store: Store,
    supply: Supply,
    domains: tuple[str, ...],
    path: Path,
    *,
    workers: int,
    published: Path | None = None,
    tables: bool = True,
    windows: tuple[Window, ...] = (),
) -> Builder:
    """Map the store; the staged stream is at `path`, which may be another name of `published`.

    `tables`: whether blocks' tables are made.
    """
    streams = opened(supply, store, domains, workers=workers).streams
    shards = [one.shards for one in streams]
    records = [one.file for name in domains for one in store.domains[name].shards]
    return Builder(
        domains=domains,
        streams=streams,
        locks=tuple(Lock() for _ in domains),
        columns=open_columns([shard for mine in shards for shard in mine]),
        first_shard=targets(np.array([len(mine) for mine in shards])),
        seq_len=supply.layout.seq_len,
        dtype=store.dtype,
        padding=_padding(store, supply.layout),
        files=tuple(store.root / one.path for one in records),
        sizes=np.array([one.bytes for one in records], np.int64),
        ahead=np.zeros(len(records), bool),
        path=path,
        turn=Lock(),
        published=published,
        tables=tables,
        windows=windows,
    )


def _padding(store: Store, layout: Layout) -> NDArray[Any] | None:
    if layout.packing == "concat":
        return None
    return np.full(layout.seq_len, store.eot_id, store.dtype)


def sources_of(builder: Builder, task: BlockTask) -> BlockRows:
    """Where the rows of a block come from, in the order of the block."""
    numbers = np.empty(len(task.labels), np.int64)
    parts, count = [], len(builder.streams)
    # Neighbours begin with different domains, so that threads do not wait for each other's epochs.
    turn = task.number * count // AT_ONCE
    for domain in [(turn + i) % count for i in range(count)]:
        place = np.flatnonzero(task.labels == domain)
        if not len(place):
            continue
        position, stream = int(task.positions[domain]), builder.streams[domain]
        # Streams lay epochs out when they are first asked for: once is enough.
        with builder.locks[domain]:
            number = stream.deck(np.arange(position, position + len(place)))
            # In the order of the stream, neighbours are found close to each other.
            order = np.argsort(number)
            number, place = number[order], place[order]
            spans = stream.spans(number)
        numbers[place] = number
        shard, local = stream.locate(spans.document)
        shard += builder.first_shard[domain]
        row, rest = place[spans.row], (spans.start, spans.length, shard, local)
        parts.append((row, spans.epoch, spans.document, *rest))
    columns = np.empty((len(parts[0]), sum(len(row) for row, *_ in parts)), np.int64)
    for column, each in zip(columns, zip(*parts, strict=True), strict=True):
        np.concatenate(each, out=column)  # ten times as fast as a stack of what is joined
    row, epoch, document, start, length, shard, local = sort_columns(columns, len(task.labels))
    doc_id, begin = builder.columns.doc_ids(shard, local), builder.columns.begins(shard, local)
    spans = Spans(row, epoch, document, start, length)
    return BlockRows(task.first, task.labels, numbers, spans, doc_id, shard, begin + start)
