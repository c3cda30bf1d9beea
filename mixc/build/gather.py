"""The tokens of output blocks: written from where they are found to their place, and hashed there.

Workers are threads: what they do at length, sorting, writing and hashing, holds no lock of
Python's, and all share one copy of the documents' lengths and orders.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from mixc_kernels.gather_spans import copy_all, fetch_begins, populate, span_addresses
from numpy.typing import NDArray

from mixc.build.blocks import BlockTask, Builder, Finder, Origin, from_store, sources_of
from mixc.build.provenance import BlockRows, block_table, taken
from mixc.engine.threads import in_order
from mixc.errors import MixcError, Place
from mixc.rows.stream import Spans
from mixc.store import parts
from mixc.writers.sequences import StreamSpec

Index = NDArray[np.int64]


@dataclass(frozen=True)
class BlockDone:
    """A staged block: its digest, its tokens, the table of its rows' sources, and their sums.

    `taken[d][e]` are the tokens of epoch e of domain d that stand in it.
    """

    number: int
    rows: int
    digest: str
    tokens: NDArray[Any]
    table: pa.Table | None
    taken: tuple[dict[int, int], ...]


def build_blocks(
    builder: Builder, tasks: Iterable[BlockTask], *, workers: int, find: Finder = from_store
) -> Iterator[BlockDone]:
    """Stage every block; yield them in order. Its tokens stand until the next one is asked for."""
    threads = len(builder.windows) - 1 if builder.windows else workers
    yield from in_order(lambda task: build_block(builder, task, find), tasks, workers=threads)


def build_block(builder: Builder, task: BlockTask, find: Finder = from_store) -> BlockDone:
    """Stage a block, unless it is staged already, and say where its rows come from.

    `find` says where tokens are read.
    """
    rows = sources_of(builder, task)
    digest, tokens = place_tokens(builder, task, find, rows)
    table = block_table(rows, builder.domains) if builder.tables else None
    sums = taken(rows, len(builder.domains))
    return BlockDone(task.number, len(task.labels), digest, tokens, table, sums)


def place_tokens(
    builder: Builder, task: BlockTask, find: Finder, rows: BlockRows | None = None
) -> tuple[str, NDArray[Any]]:
    """Put a block's tokens in their place, unless they stand there; their digest, and they.

    `rows`: where the block's rows come from, if that is known. Raises MX040 if they cannot be read,
    or would have to be written to a file that is published.
    """
    if task.known is not None and block_digest(tokens := _staged(builder, task)) == task.known:
        return task.known, tokens
    if builder.published is not None:
        raise MixcError(
            "MX040",
            "the file changed while it was read, or its disk fails",
            place=Place(str(builder.published)),
            help="run again: what is damaged of the mixture that is there is made anew",
        )
    rows = sources_of(builder, task) if rows is None else rows
    return _write(builder, task, rows, find(builder, task, rows))


def _place(builder: Builder, task: BlockTask) -> tuple[int, int]:
    """Where a block begins in its file, in bytes, and its tokens."""
    count = len(task.labels) * builder.seq_len
    return task.first * builder.seq_len * builder.dtype.itemsize, count


def _staged(builder: Builder, task: BlockTask) -> NDArray[Any]:
    """What stands in a block's place."""
    offset, count = _place(builder, task)
    return np.fromfile(builder.path, builder.dtype, count, offset=offset)


def _write(
    builder: Builder, task: BlockTask, rows: BlockRows, origin: Origin
) -> tuple[str, NDArray[Any]]:
    """Put a block's tokens in place; their digest, and they.

    They go from where they are found right to the file and are hashed as they stand there, or
    through a window past the page cache and are hashed on the way.
    """
    offset, count = _place(builder, task)
    width = builder.dtype.itemsize
    addresses, length = _whole_rows(builder, len(task.labels), rows.spans, origin)
    sizes = length * width
    if builder.windows:
        _fetch(origin, rows.spans)
        return _write_by_window(builder, task, addresses, sizes)

    def file_of(number: int) -> Path:
        pool, address = origin.pool, addresses[number]
        ends = pool.addresses + pool.sizes.astype(np.uint64) * np.uint64(width)
        holding = np.flatnonzero((pool.addresses <= address) & (address < ends))
        return origin.files[int(holding[0])] if len(holding) else builder.path

    if builder.cold.is_set():  # who waits for the disk with the file in hand lets all others wait
        populate(addresses, sizes)
    with builder.turn:
        before = _major_faults()
        parts.write_from(builder.path, offset, addresses, sizes, file_of, fetch_begins)
        if _major_faults() > before:
            builder.cold.set()
    tokens = np.memmap(builder.path, builder.dtype, "r", offset, count)
    return block_digest(tokens), tokens


def _fetch(origin: Origin, spans: Spans) -> None:
    """Let the system fetch what was not read ahead. Raises MX040 if it cannot be read.

    What is mapped and cannot be read would kill who copies it.
    """
    late = np.flatnonzero(~origin.ahead[origin.source])
    if not len(late):
        return
    source, length = origin.source[late], spans.length[late]
    addresses = span_addresses(origin.pool, source, origin.at[late], length)
    sizes = length * origin.pool.values[0].itemsize
    if (unread := populate(addresses, sizes)) is not None:
        raise parts.unreadable(origin.files[int(source[unread])])


def _write_by_window(
    builder: Builder,
    task: BlockTask,
    addresses: NDArray[np.uint64],
    sizes: Index,
) -> tuple[str, NDArray[Any]]:
    """Put a block's tokens in place past the page cache; their digest, and they.

    They are copied by this process, twice as fast as by the system.
    """
    offset, count = _place(builder, task)
    window = builder.windows[task.number % len(builder.windows)]
    room = window.room(offset, count * builder.dtype.itemsize)
    tokens = np.frombuffer(room, builder.dtype)
    copy_all(addresses, sizes, tokens)
    digest = block_digest(tokens)
    window.write(builder.path, offset, len(room))
    return digest, tokens


def _major_faults() -> int:
    """How often this thread has waited for the disk to fill a page."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


def _whole_rows(
    builder: Builder, rows: int, spans: Spans, origin: Origin
) -> tuple[NDArray[np.uint64], Index]:
    """Where in memory the spans of rows begin and their lengths, in order; behind those of a row
    stands what fills it up, the end of text. Raises MX040 if they do not make whole rows.
    """
    try:
        addresses = span_addresses(origin.pool, origin.source, origin.at, spans.length)
    except IndexError as error:
        raise _no_rows(origin, int(origin.source[0])) from error
    left = builder.seq_len - np.bincount(spans.row, spans.length, rows).astype(np.int64)
    short = np.flatnonzero(left)
    if not len(short):
        return addresses, spans.length
    if builder.padding is None or left.min() < 0:
        first = int(np.searchsorted(spans.row, short[0]))
        raise _no_rows(origin, int(origin.source[min(first, len(spans.row) - 1)]))
    order = np.argsort(np.concatenate([spans.row, short]), kind="stable")
    padding = np.full(len(short), builder.padding.ctypes.data, np.uint64)
    addresses = np.concatenate([addresses, padding])
    return addresses[order], np.concatenate([spans.length, left[short]])[order]


def _no_rows(origin: Origin, source: int) -> MixcError:
    message = "its documents do not fill the rows that were planned: it changed meanwhile"
    hint = "run `mixc verify` on the store"
    return MixcError("MX040", message, place=Place(str(origin.files[source])), help=hint)


def read_block(path: Path, spec: StreamSpec, number: int, block_rows: int) -> NDArray[Any]:
    """A block of a stream's file, flat: as much of it as is there."""
    first = number * block_rows
    count = min(block_rows, spec.rows - first) * spec.seq_len
    offset = first * spec.seq_len * spec.dtype.itemsize
    return np.fromfile(path, spec.dtype, count, offset=offset)


def block_digest(tokens: NDArray[Any]) -> str:
    """The digest of a block: XXH3-128 of its tokens as they stand in the stream, flat."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(tokens).data)


def stream_hash(digests: Sequence[str]) -> str:
    """The hash of the whole stream: XXH3-128 of its blocks' digests, end to end."""
    return xxhash.xxh3_128_hexdigest(b"".join(bytes.fromhex(digest) for digest in digests))
