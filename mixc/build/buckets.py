"""Two passes over the tokens, for a store that cannot be read at random.

First the store is read once, shard after shard, and what blocks take from it goes to their bucket.
Then one bucket after the other is read, and its blocks are put together in memory. Everything is
read and written in runs of about a MiB or more, twice; the mixture's bytes are those of one pass.

A window is a run of shards that is held in memory at a time, a bucket a run of blocks. The tokens
of a bucket stand by window; in a window, by block; in a block, in the order of its spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from threading import Lock

import numpy as np
from mixc_kernels.gather_spans import Pool, gather_spans, make_pool
from numpy.typing import NDArray

from mixc.build.blocks import BlockTask, Builder, Origin, from_store, sources_of
from mixc.build.provenance import BlockRows
from mixc.engine.threads import in_order
from mixc.rows.stream import targets
from mixc.store import commit, parts

Index = NDArray[np.int64]
_LEAST_BYTES, _RUN_BYTES = 1 << 28, 1 << 20


def bucket_bytes(total: int) -> int:
    """Bytes of a bucket, and of a window: what one takes from the other is about a MiB."""
    return max(_LEAST_BYTES, isqrt(total * _RUN_BYTES))


@dataclass(frozen=True)
class _Asked:
    """What the n blocks of a bucket take from each of W windows, all int64.

    `spans`, [W+1], is the first span of each window, `tokens`, [W+1], where in the bucket its
    tokens begin, and `begins`, [n, W], where those for each block do. `columns`, [3, m], are of
    each span its shard, its place there, and its length.
    """

    spans: Index
    tokens: Index
    begins: Index
    columns: Index


class Buckets:
    """Blocks' tokens in buckets, once both are made: by `fill`, then block by block by `find`."""

    def __init__(self, builder: Builder, folder: Path, *, size: int) -> None:
        self._builder, self._folder = builder, folder
        self._window, self._borders = _windows(builder.columns.tokens.values, size)
        self._size = size
        self._places: dict[int, tuple[int, int]] = {}  # of a block: its bucket, its number there
        self._lock = Lock()
        self._open: dict[int, Pool] = {}
        self._blocks: list[int] = []  # of each bucket
        self._left: list[int] = []  # of them, those yet to be put together

    def fill(self, tasks: Iterable[BlockTask], *, workers: int) -> None:
        """Read the store once, for all blocks of `tasks`, in the order of their numbers."""
        commit.remove(self._folder)
        groups = in_order(self._ask, enumerate(self._groups(tasks)), workers=workers)
        for bucket, numbers in enumerate(groups):
            self._places |= {number: (bucket, i) for i, number in enumerate(numbers)}
            self._blocks.append(len(numbers))
        self._left = self._blocks.copy()
        for _ in in_order(self._share_out, range(len(self._borders) - 1), workers=workers):
            pass

    def find(self, builder: Builder, task: BlockTask, rows: BlockRows) -> Origin:
        """Where the tokens of a block stand in its bucket; of one that has none, in the store.

        Each block is asked for once: a bucket is gone after its last.
        """
        if task.number not in self._places:
            return from_store(builder, task, rows)
        bucket, number = self._places[task.number]
        asked, window = self._asked(bucket), self._window[rows.shard]
        order = np.argsort(window, kind="stable")
        length, window = rows.spans.length[order], window[order]
        of_window = np.bincount(window, length, len(self._borders) - 1).astype(np.int64)
        at = np.empty(len(order), np.int64)
        at[order] = targets(length) + (asked.begins[number] - targets(of_window))[window]
        pool = self._take(bucket)
        held = np.ones(1, bool)  # in memory of our own
        return Origin(pool, np.zeros(len(at), np.int64), at, (self._path(bucket, "bin"),), held)

    def _groups(self, tasks: Iterable[BlockTask]) -> Iterator[list[BlockTask]]:
        held, group = 0, list[BlockTask]()
        for task in tasks:
            size = len(task.labels) * self._builder.seq_len * self._builder.dtype.itemsize
            if group and held + size > self._size:
                yield group
                held, group = 0, []
            held += size
            group.append(task)
        if group:
            yield group

    def _ask(self, group: tuple[int, Sequence[BlockTask]]) -> list[int]:
        """Note what the blocks of a bucket take from each window, and keep room for it."""
        bucket, tasks = group
        rows = [sources_of(self._builder, task) for task in tasks]
        windows, count = [self._window[one.shard] for one in rows], len(self._borders) - 1
        pairs = zip(windows, rows, strict=True)
        tokens = [np.bincount(window, one.spans.length, count) for window, one in pairs]
        ends = np.cumsum(np.array(tokens, np.int64).T, dtype=np.int64)
        begins = np.concatenate([np.zeros(1, np.int64), ends])
        window = np.concatenate(windows)
        order = np.argsort(window, kind="stable")
        found = ([one.shard, one.at, one.spans.length] for one in rows)
        columns = np.concatenate([np.stack(one) for one in found], axis=1)[:, order]
        spans = np.searchsorted(window[order], np.arange(count + 1))
        noted = (spans, begins[:: len(tasks)], begins[:-1].reshape(count, -1).T, columns)
        commit.write_file(self._path(bucket, "asked"), b"".join(one.tobytes() for one in noted))
        parts.reserve(self._path(bucket, "bin"), int(begins[-1]) * self._builder.dtype.itemsize)
        return [task.number for task in tasks]

    def _asked(self, bucket: int) -> _Asked:
        windows = len(self._borders) - 1
        noted = np.memmap(self._path(bucket, "asked"), np.int64, mode="r")
        cuts = np.cumsum([windows + 1, windows + 1, self._blocks[bucket] * windows])
        spans, tokens, begins, columns = np.split(noted, cuts)
        return _Asked(spans, tokens, begins.reshape(-1, windows), columns.reshape(3, -1))

    def _share_out(self, window: int) -> None:
        """Read a window, and give each bucket what its blocks take from it."""
        first, stop = self._borders[window : window + 2].tolist()
        pool, width = None, self._builder.dtype.itemsize
        for bucket in range(len(self._blocks)):
            asked = self._asked(bucket)
            shard, at, length = asked.columns[:, slice(*asked.spans[window : window + 2].tolist())]
            if not len(shard):
                continue
            if pool is None:
                mapped = self._builder.columns.tokens.values[first:stop]
                pool = make_pool([np.array(values) for values in mapped])
            out = np.empty(int(length.sum()), self._builder.dtype)
            gather_spans(pool, shard - first, at, targets(length), length, out)
            offset = int(asked.tokens[window]) * width
            parts.write_at(self._path(bucket, "bin"), offset, out.data.cast("B"))

    def _take(self, bucket: int) -> Pool:
        """The tokens of a bucket, for one more of its blocks; its files are gone with the last."""
        with self._lock:
            path = self._path(bucket, "bin")
            if bucket not in self._open:
                commit.sync(path)  # what the disk does not take must not be read as if it had
                self._open[bucket] = make_pool([np.fromfile(path, self._builder.dtype)])
            self._left[bucket] -= 1
            if self._left[bucket]:
                return self._open[bucket]
            commit.remove(path)
            commit.remove(self._path(bucket, "asked"))
            return self._open.pop(bucket)

    def _path(self, bucket: int, kind: str) -> Path:
        return self._folder / f"{bucket:06}.{kind}"


def _windows(shards: Sequence[NDArray[np.generic]], size: int) -> tuple[Index, Index]:
    """The window of each shard, int64[shards], and the first shard of each and the end."""
    firsts, held = [0], 0
    for number, values in enumerate(shards):
        if held and held + values.nbytes > size:
            firsts.append(number)
            held = 0
        held += values.nbytes
    borders = np.array([*firsts, len(shards)], np.int64)
    return np.repeat(np.arange(len(firsts)), np.diff(borders)), borders
