"""The columns of many shards, each read as if it were one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from mixc_kernels.gather_spans import Pool, make_pool, take_words
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
        return take_words(self._doc_ids, shard, local)

    def begins(self, shard: Index, local: Index) -> Index:
        """Where documents begin in the tokens of their shards, int64[m]."""
        return take_words(self._offsets, shard, local).view(np.int64)


def open_columns(shards: Sequence[Documents]) -> Columns:
    """The columns of mapped shards."""
    return Columns(
        make_pool([shard.tokens for shard in shards]),
        make_pool([shard.doc_id for shard in shards]),
        make_pool([shard.offsets for shard in shards]),
    )
