"""One block of the output: which rows it holds, where they come from, and their tokens.

A block is a pure function of the plan and its number: any worker may make any block. Workers are
threads: what they do at length, copying, hashing, sorting and writing, holds no lock of Python's,
and all share one copy of the documents' lengths and orders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from mixc_kernels.gather_spans import gather_spans, widen
from numpy.typing import NDArray

from mixc.build.provenance import BlockRows, block_table, taken
from mixc.build.supply import Supply
from mixc.rows.columns import Columns, open_columns
from mixc.rows.stream import AT_ONCE, DomainStream, Spans, targets, within_rows
from mixc.store import commit
from mixc.store.store import Store

Index = NDArray[np.int64]
_HASH_TOKENS = 1 << 15
_PIECE_TOKENS = 1 << 19  # copied, hashed and written while they are in a core's cache


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
class BlockDone:
    """A staged block: its digest, its tokens, the table of its rows' sources, and their sums.

    `taken[d][e]` are the tokens of epoch e of domain d that stand in it.
    """

    number: int
    rows: int
    digest: str
    tokens: NDArray[Any]
    table: pa.Table
    taken: tuple[dict[int, int], ...]


@dataclass(frozen=True)
class Builder:
    """What workers share.

    `locks` has one for each domain's stream. `columns` are those of every shard, domain by domain:
    of domain d from shard `first_shard[d]` on, int64[K]; `first_document` is the number in its
    domain of each shard's first document, int64[shards].
    """

    domains: tuple[str, ...]
    streams: tuple[DomainStream, ...]
    locks: tuple[Lock, ...]
    columns: Columns
    first_shard: Index
    first_document: Index
    seq_len: int
    dtype: np.dtype[Any]
    eot_id: int
    path: Path


def make_builder(
    store: Store, supply: Supply, domains: tuple[str, ...], path: Path, *, workers: int
) -> Builder:
    """Map the store; the staged stream is at `path`."""
    _ = store.all_held_ids  # read once, before threads ask for it

    def open_stream(name: str) -> DomainStream:
        return supply.layout.open(store, [name])[0]

    streams = supply.streams
    if not streams:
        with ThreadPoolExecutor(min(workers, AT_ONCE)) as crew:
            streams = tuple(crew.map(open_stream, domains))
    shards = [one.shards for one in streams]
    return Builder(
        domains=domains,
        streams=streams,
        locks=tuple(Lock() for _ in domains),
        columns=open_columns([shard for mine in shards for shard in mine]),
        first_shard=targets(np.array([len(mine) for mine in shards])),
        first_document=np.concatenate([one.first_document[:-1] for one in streams]),
        seq_len=supply.layout.seq_len,
        dtype=store.dtype,
        eot_id=store.eot_id,
        path=path,
    )


def build_blocks(
    builder: Builder, tasks: Iterable[BlockTask], rows: int, *, workers: int
) -> Iterator[BlockDone]:
    """Stage every block, of `rows` rows at most; yield them in order.

    Tokens are good until the next block is asked for.
    """
    most = rows * builder.seq_len
    if workers < 2:
        buffer = np.empty(most, builder.dtype)
        for task in tasks:
            yield build_block(builder, task, buffer)
        return
    free = [np.empty(most, builder.dtype) for _ in range(workers + 1)]
    pending: deque[tuple[Future[BlockDone], NDArray[Any]]] = deque()
    waiting = iter(tasks)
    crew = ThreadPoolExecutor(workers)
    try:
        while True:
            for task in islice(waiting, len(free)):
                buffer = free.pop()
                pending.append((crew.submit(build_block, builder, task, buffer), buffer))
            if not pending:
                return
            future, buffer = pending.popleft()
            yield future.result()
            free.append(buffer)
    finally:
        crew.shutdown(cancel_futures=True)


def build_block(builder: Builder, task: BlockTask, buffer: NDArray[Any]) -> BlockDone:
    """Stage a block, unless it is staged already, and say where its rows come from.

    `buffer`, of at least the block's tokens, is overwritten.
    """
    rows = _sources(builder, task)
    out = buffer[: len(task.labels) * builder.seq_len]
    digest = task.known
    if digest is None or digest != _staged_digest(builder, task, out):
        digest = _write(builder, task, rows, out)
    table = block_table(rows, builder.domains)
    sums = taken(rows, len(builder.domains))
    return BlockDone(task.number, len(task.labels), digest, out, table, sums)


def _write(builder: Builder, task: BlockTask, rows: BlockRows, out: NDArray[Any]) -> str:
    """Put a block's tokens in place, piece by piece, and on the disk; their digest."""
    seq_len, spans = builder.seq_len, rows.spans
    full = int(spans.length.sum()) == len(out)
    to = spans.row * seq_len + within_rows(spans.row, spans.length)
    digest = BlockDigest()
    step = max(1, _PIECE_TOKENS // seq_len)
    for row in range(0, len(task.labels), step):
        begin, piece = row * seq_len, out[row * seq_len : (row + step) * seq_len]
        part = slice(*np.searchsorted(spans.row, [row, row + step]).tolist())
        shard, at, length = rows.shard[part], rows.at[part], spans.length[part]
        if not full:
            piece.fill(builder.eot_id)
        gather_spans(builder.columns.tokens, shard, at, to[part] - begin, length, piece)
        digest.update(piece)
        offset = (task.first * seq_len + begin) * builder.dtype.itemsize
        commit.write_at(builder.path, offset, piece.data.cast("B"))
    commit.start_sync(builder.path, task.first * seq_len * out.itemsize, out.nbytes)
    return digest.hexdigest()


def _sources(builder: Builder, task: BlockTask) -> BlockRows:
    """Where the rows of a block come from, in the order of the block."""
    numbers = np.empty(len(task.labels), np.int64)
    parts = []
    for domain, stream in enumerate(builder.streams):
        place = np.flatnonzero(task.labels == domain)
        if not len(place):
            continue
        position = int(task.positions[domain])
        # Streams lay epochs out when they are first asked for: once is enough.
        with builder.locks[domain]:
            number = stream.deck(np.arange(position, position + len(place)))
            # In the order of the stream, neighbours are found close to each other.
            order = np.argsort(number)
            number, place = number[order], place[order]
            spans = stream.spans(number)
        numbers[place] = number
        shard = stream.locate(spans.document)[0] + builder.first_shard[domain]
        columns = (spans.epoch, spans.document, spans.start, spans.length, shard)
        parts.append((place[spans.row], *columns))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    small = joined[0].astype(np.uint16)  # sorted faster
    order = np.argsort(small if len(task.labels) <= 1 << 16 else joined[0], kind="stable")
    row, epoch, document, start, length, shard = (column[order] for column in joined)
    local = document - builder.first_document[shard]
    doc_id, begin = builder.columns.doc_ids(shard, local), builder.columns.begins(shard, local)
    spans = Spans(row, epoch, document, start, length)
    return BlockRows(task.first, task.labels, numbers, spans, doc_id, shard, begin + start)


class BlockDigest:
    """XXH3-128 of tokens as little-endian uint32, so that it does not depend on their type."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()
        self._wide = np.empty(_HASH_TOKENS, "<u4")

    def update(self, tokens: NDArray[Any]) -> None:
        """Add tokens, flat."""
        for start in range(0, len(tokens), _HASH_TOKENS):
            part = tokens[start : start + _HASH_TOKENS]
            wide = self._wide[: len(part)]
            widen(part, wide)
            self._state.update(wide.data)

    def hexdigest(self) -> str:
        """The digest, 32 hex digits."""
        return self._state.hexdigest()


def block_digest(tokens: NDArray[Any]) -> str:
    """The digest of a block's tokens, flat."""
    digest = BlockDigest()
    digest.update(tokens)
    return digest.hexdigest()


def stream_hash(digests: Sequence[str]) -> str:
    """The hash of the whole stream: XXH3-128 of its blocks' digests, end to end."""
    return xxhash.xxh3_128_hexdigest(b"".join(bytes.fromhex(digest) for digest in digests))


def _staged_digest(builder: Builder, task: BlockTask, out: NDArray[Any]) -> str:
    """The digest of what stands in the block's place, which is read into `out`."""
    with builder.path.open("rb", buffering=0) as file:
        file.seek(task.first * builder.seq_len * builder.dtype.itemsize)
        view, done = out.data.cast("B"), 0
        while count := file.readinto(view[done:]):
            done += count
    return block_digest(out)
