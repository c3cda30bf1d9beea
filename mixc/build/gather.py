"""One block of the output: which rows it holds, where they come from, and their tokens.

A block is a pure function of the plan and its number: any worker may make any block. Workers are
threads: what they do at length, copying, hashing, sorting and writing, holds no lock of Python's,
and all share one copy of the documents' lengths and orders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from mixc_kernels.copy_spans import Pool, gather_spans, make_pool
from numpy.typing import NDArray

from mixc.build.provenance import BlockRows, block_table, taken
from mixc.rows.stream import DomainStream, Spans, targets
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
    """What workers share. The shards of domain d are in `pool` from `first_shard[d]` on."""

    domains: tuple[str, ...]
    streams: tuple[DomainStream, ...]
    pool: Pool
    first_shard: tuple[int, ...]
    seq_len: int
    dtype: np.dtype[Any]
    path: Path


def make_builder(
    store: Store, domains: tuple[str, ...], seq_len: int, seed: int, path: Path, *, workers: int
) -> Builder:
    """Map the store; the staged stream is at `path`."""
    _ = store.all_held_ids  # read once, before threads ask for it

    def open_stream(name: str) -> DomainStream:
        return DomainStream(store, name, seq_len=seq_len, seed=seed)

    with ThreadPoolExecutor(workers) as crew:
        streams = tuple(crew.map(open_stream, domains))
    counts = [len(store.domains[name].shards) for name in domains]
    shards = [one.shard(i).tokens for one, n in zip(streams, counts, strict=True) for i in range(n)]
    firsts = tuple(int(n) for n in targets(np.array(counts)))
    return Builder(domains, streams, make_pool(shards), firsts, seq_len, store.dtype, path)


def build_blocks(
    builder: Builder, tasks: Sequence[BlockTask], *, workers: int
) -> Iterator[BlockDone]:
    """Stage every block; yield them in order. Tokens are good until the next block is asked for."""
    most = max((len(task.labels) for task in tasks), default=0) * builder.seq_len
    if workers < 2:
        buffer = np.empty(most, builder.dtype)
        for task in tasks:
            yield build_block(builder, task, buffer)
        return
    free = [np.empty(most, builder.dtype) for _ in range(min(workers + 1, len(tasks)))]
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
    # Spans are in the order of rows, and within one row end to end.
    to = targets(spans.length)
    digest = BlockDigest()
    step = max(1, _PIECE_TOKENS // seq_len)
    for row in range(0, len(task.labels), step):
        begin, piece = row * seq_len, out[row * seq_len : (row + step) * seq_len]
        part = slice(*np.searchsorted(spans.row, [row, row + step]).tolist())
        shard, at, length = rows.shard[part], rows.at[part], spans.length[part]
        gather_spans(builder.pool, shard, at, to[part] - begin, length, piece)
        digest.update(piece)
        offset = (task.first * seq_len + begin) * builder.dtype.itemsize
        commit.write_at(builder.path, offset, piece.data.cast("B"))
    return digest.hexdigest()


def _sources(builder: Builder, task: BlockTask) -> BlockRows:
    """Where the rows of a block come from, in the order of the block."""
    numbers = np.empty(len(task.labels), np.int64)
    parts = []
    for domain, stream in enumerate(builder.streams):
        place = np.flatnonzero(task.labels == domain)
        if not len(place):
            continue
        start = int(task.positions[domain])
        number = stream.deck(np.arange(start, start + len(place)))
        # In the order of the stream, neighbours are found close to each other.
        order = np.argsort(number)
        number, place = number[order], place[order]
        numbers[place] = number
        parts.append((place, domain, stream, stream.spans(number)))
    columns = [_columns(builder, *part) for part in parts]
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    rows = joined[0]
    small = rows.astype(np.uint16) if len(task.labels) <= 1 << 16 else rows  # sorted faster
    order = np.argsort(small, kind="stable")
    row, epoch, document, start_, length, doc_id, shard, at = (one[order] for one in joined)
    spans = Spans(row, epoch, document, start_, length)
    return BlockRows(task.first, task.labels, numbers, spans, doc_id, shard, at)


def _columns(
    builder: Builder, place: Index, domain: int, stream: DomainStream, spans: Spans
) -> tuple[NDArray[Any], ...]:
    """Of a domain's spans: row of the block, epoch, document, start, length, id, shard, offset."""
    shard, local = stream.locate(spans.document)
    doc_id = np.empty(len(local), np.uint64)
    at = np.empty(len(local), np.int64)
    for number in np.unique(shard):
        documents = stream.shard(int(number))
        mine = shard == number
        doc_id[mine] = documents.doc_id[local[mine]]
        at[mine] = documents.offsets[local[mine]]
    return (
        place[spans.row],
        spans.epoch,
        spans.document,
        spans.start,
        spans.length,
        doc_id,
        shard + builder.first_shard[domain],
        at + spans.start,
    )


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
            np.copyto(wide, part)
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
