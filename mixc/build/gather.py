"""One block of the output: which rows it holds, where they come from, and their tokens.

A block is a pure function of the plan and its number: any worker may make any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from mixc.build.provenance import BlockRows, block_table
from mixc.engine.local import Report
from mixc.errors import MixcError, Place
from mixc.rows.packing import Layout
from mixc.rows.stream import DomainStream, Spans, within_rows
from mixc.rows.weights import read_weights
from mixc.store import commit
from mixc.store.store import open_store

_HASH_TOKENS = 1 << 18


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
    """A staged block: its digest, and the table of its rows' sources as Arrow IPC bytes."""

    number: int
    digest: str
    table: bytes


@dataclass(frozen=True)
class Builder:
    """What a worker process holds."""

    domains: tuple[str, ...]
    streams: tuple[DomainStream, ...]
    seq_len: int
    dtype: np.dtype[np.generic]
    eot_id: int
    path: Path


def make_builder(
    store_root: Path,
    store_hash: str,
    domains: tuple[str, ...],
    layout: Layout,
    weights: Path | None,
    path: Path,
) -> Builder:
    """Set a worker up: the store mapped, its streams opened, the staged output at `path`.

    `weights` is a file of the documents' weights.
    """
    store = open_store(store_root)
    if store.store_hash != store_hash:
        raise MixcError("MX045", "the store was replaced meanwhile", place=Place(str(store_root)))
    read = None if weights is None else read_weights(weights)
    streams = layout.open(store, domains, read)
    return Builder(domains, streams, layout.seq_len, store.dtype, store.eot_id, path)


def build_block(builder: Builder, task: BlockTask, report: Report) -> BlockDone:
    """Stage a block, unless it is staged already, and say where its rows come from."""
    rows = _sources(builder, task)
    offset = task.first * builder.seq_len * builder.dtype.itemsize
    digest = task.known
    if digest is None or digest != _staged_digest(builder, task, offset):
        out = np.full(len(task.labels) * builder.seq_len, builder.eot_id, builder.dtype)
        for stream, place, spans in zip(builder.streams, rows.places, rows.spans, strict=True):
            stream.fill(spans, _targets(place, spans, builder.seq_len), out)
        digest = block_digest(out)
        commit.write_at(builder.path, offset, out.data.cast("B"))
    report(len(task.labels))
    return BlockDone(task.number, digest, block_table(rows, builder.domains, builder.streams))


def _sources(builder: Builder, task: BlockTask) -> BlockRows:
    """For each domain: its rows' places in the block, numbers in the stream, and spans."""
    places, numbers, spans = [], [], []
    for domain, stream in enumerate(builder.streams):
        place = np.flatnonzero(task.labels == domain)
        start = int(task.positions[domain])
        number = place[:0]
        if len(place):
            number = stream.deck(np.arange(start, start + len(place)))
        places.append(place)
        numbers.append(number)
        spans.append(stream.spans(number) if len(place) else _NO_SPANS)
    return BlockRows(task.first, task.labels, tuple(places), tuple(numbers), tuple(spans))


_NONE = np.zeros(0, np.int64)
_NO_SPANS = Spans(_NONE, _NONE, _NONE, _NONE, _NONE)


def _targets(place: NDArray[np.int64], spans: Spans, seq_len: int) -> NDArray[np.int64]:
    """Where in the block each span of a domain's rows goes."""
    return place[spans.row] * seq_len + within_rows(spans.row, spans.length)


def block_digest(tokens: NDArray[np.generic]) -> str:
    """XXH3-128 of tokens as little-endian uint32, so that it does not depend on their type."""
    state = xxhash.xxh3_128()
    for start in range(0, len(tokens), _HASH_TOKENS):
        state.update(tokens[start : start + _HASH_TOKENS].astype("<u4").data)
    return state.hexdigest()


def stream_hash(digests: Sequence[str]) -> str:
    """The hash of the whole stream: XXH3-128 of its blocks' digests, end to end."""
    return xxhash.xxh3_128_hexdigest(b"".join(bytes.fromhex(digest) for digest in digests))


def _staged_digest(builder: Builder, task: BlockTask, offset: int) -> str:
    count = len(task.labels) * builder.seq_len
    return block_digest(np.fromfile(builder.path, builder.dtype, count, offset=offset))
