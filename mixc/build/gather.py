"""The tokens of output blocks: copied from where they are found, hashed, written in their place.

Workers are threads: what they do at length, copying, hashing, sorting and writing, holds no lock
of Python's, and all share one copy of the documents' lengths and orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from mixc_kernels.gather_spans import gather_spans, widen
from numpy.typing import NDArray

from mixc.build.blocks import BlockTask, Builder, Finder, Origin, from_store, sources_of
from mixc.build.provenance import BlockRows, block_table, taken
from mixc.engine.threads import in_order
from mixc.rows.stream import within_rows
from mixc.store import commit

_HASH_TOKENS = 1 << 15
_PIECE_TOKENS = 1 << 19  # copied, hashed and written while they are in a core's cache


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


def build_blocks(
    builder: Builder,
    tasks: Iterable[BlockTask],
    rows: int,
    *,
    workers: int,
    find: Finder = from_store,
) -> Iterator[BlockDone]:
    """Stage every block, of `rows` rows at most; yield them in order.

    Tokens are good until the next block is asked for.
    """
    free = SimpleQueue[NDArray[Any]]()
    for _ in range(workers + (workers > 1)):
        free.put(np.empty(rows * builder.seq_len, builder.dtype))

    def build(task: BlockTask) -> tuple[BlockDone, NDArray[Any]]:
        buffer = free.get()
        return build_block(builder, task, buffer, find), buffer

    for done, buffer in in_order(build, tasks, workers=workers):
        yield done
        free.put(buffer)


def build_block(
    builder: Builder, task: BlockTask, buffer: NDArray[Any], find: Finder = from_store
) -> BlockDone:
    """Stage a block, unless it is staged already, and say where its rows come from.

    `buffer`, of at least the block's tokens, is overwritten; `find` says where tokens are read.
    """
    rows = sources_of(builder, task)
    digest = place_tokens(builder, task, buffer, find, rows)
    out = buffer[: len(task.labels) * builder.seq_len]
    table = block_table(rows, builder.domains)
    sums = taken(rows, len(builder.domains))
    return BlockDone(task.number, len(task.labels), digest, out, table, sums)


def place_tokens(
    builder: Builder,
    task: BlockTask,
    buffer: NDArray[Any],
    find: Finder,
    rows: BlockRows | None = None,
) -> str:
    """Put a block's tokens in `buffer` and in their place, unless they stand there; their digest.

    `rows`: where the block's rows come from, if that is known.
    """
    out = buffer[: len(task.labels) * builder.seq_len]
    if task.known is not None and task.known == _staged_digest(builder, task, out):
        return task.known
    rows = sources_of(builder, task) if rows is None else rows
    return _write(builder, task, rows, find(builder, task, rows), out)


def _write(
    builder: Builder, task: BlockTask, rows: BlockRows, origin: Origin, out: NDArray[Any]
) -> str:
    """Put a block's tokens in place, piece by piece, and on the disk; their digest."""
    seq_len, spans = builder.seq_len, rows.spans
    full = int(spans.length.sum()) == len(out)
    to = spans.row * seq_len + within_rows(spans.row, spans.length)
    digest = BlockDigest()
    step = max(1, _PIECE_TOKENS // seq_len)
    for row in range(0, len(task.labels), step):
        begin, piece = row * seq_len, out[row * seq_len : (row + step) * seq_len]
        part = slice(*np.searchsorted(spans.row, [row, row + step]).tolist())
        source, at, length = origin.source[part], origin.at[part], spans.length[part]
        if not full:
            piece.fill(builder.eot_id)
        gather_spans(origin.pool, source, at, to[part] - begin, length, piece)
        digest.update(piece)
        offset = (task.first * seq_len + begin) * builder.dtype.itemsize
        commit.write_at(builder.path, offset, piece.data.cast("B"))
    commit.start_sync(builder.path, task.first * seq_len * out.itemsize, out.nbytes)
    return digest.hexdigest()


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
