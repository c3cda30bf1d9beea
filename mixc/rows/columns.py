"""The columns of many shards, each read as if it were one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mixc_kernels.gather_spans import Pool, gather_spans, make_pool
from numpy.typing import NDArray

from mixc.store.shard import Documents

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Of shards in a row: their tokens, and of each document its id and where it begins.

    Documents are named by their shards and their numbers there, both int64[m].
    """

    tokens: Pool
    _doc_ids: Pool
    _offsets: Pool

    def doc_ids(self, shard: Index, local: Index) -> NDArray[np.uint64]:
        """The ids of documents, uint64[m]."""
        return _taken(self._doc_ids, shard, local, np.uint64)

    def begins(self, shard: Index, local: Index) -> Index:
        """Where documents begin in the tokens of their shards, int64[m]."""
        return _taken(self._offsets, shard, local, np.int64)


def open_columns(shards: Sequence[Documents]) -> Columns:
    """The columns of mapped shards."""
    return Columns(
        make_pool([shard.tokens for shard in shards]),
        make_pool([shard.doc_id for shard in shards]),
        make_pool([shard.offsets for shard in shards]),
    )


def _taken(pool: Pool, shard: Index, local: Index, dtype: type) -> NDArray[Any]:
    out: NDArray[Any] = np.empty(len(shard), dtype)
    gather_spans(pool, shard, local, np.arange(len(out)), np.ones(len(out), np.int64), out)
    return out
