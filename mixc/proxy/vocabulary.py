"""A smaller vocabulary for small models, whose output layer else costs more than all the rest.

The most frequent ids of the store keep a place of their own; each of the others shares one with
those that fall into the same bucket. A model then predicts places, p(place), and which of the ids
of a place a token is follows from how frequent they are: p(id) = p(place) q(id | place). These
sum to 1 over all ids, so -log p(place) - log q(id | place) nats is the length of a code that
tells every token exactly, and bits per byte made from it can be set beside those of any model.
What is lost is that the model cannot tell the ids of a place apart, so it is an upper bound of
what the same model would reach with all ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mixc.proxy import cache
from mixc.proxy.names import names_of
from mixc.rng import Stream
from mixc.store.columns import column, view
from mixc.store.holdout import among
from mixc.store.store import Store

ALGORITHM = 2  # a change of which ids share a place raises it
_BUCKET_SHARE = 8  # one place in so many is a bucket
_COUNTED = 1 << 26  # tokens of a domain, spread over its shards
_CHUNK = 1 << 22

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Vocabulary:
    """`ids` int64[V]: the model's id, below `size`, of each of the store's.

    `extra` float64[V]: nats that tell which of the store's ids that share the model's it is.
    """

    size: int
    ids: NDArray[np.int64]
    extra: Real

    @property
    def key(self) -> list[int]:
        """What tells it from others of the same store."""
        return [ALGORITHM, self.size]

    @staticmethod
    def full(size: int) -> Vocabulary:
        """All ids as they are."""
        return Vocabulary(size, np.arange(size), np.zeros(size))

    @staticmethod
    def compact(frequencies: Real, size: int, eot_id: int) -> Vocabulary:
        """`size` places for ids of these frequencies, float64[V], all above 0.

        7 of 8 places go to the end of text and the most frequent ids, one each; the others are
        buckets, which the rest fall into by a hash.
        """
        if size >= len(frequencies):
            return Vocabulary.full(len(frequencies))
        buckets = max(1, size // _BUCKET_SHARE)
        own = size - buckets
        wanted = np.where(np.arange(len(frequencies)) == eot_id, np.inf, frequencies)
        order = np.argsort(-wanted, kind="stable")
        ids = np.empty(len(frequencies), np.int64)
        ids[order[:own]] = np.arange(own)
        rest = order[own:]
        hashed = Stream(0, "vocabulary").hash(rest.astype(np.uint64))
        ids[rest] = own + (hashed % np.uint64(buckets)).astype(np.int64)
        mass = np.bincount(ids, frequencies, minlength=size)
        extra = np.log(mass[ids] / frequencies)
        extra[order[:own]] = 0.0
        return Vocabulary(size, ids, extra)


def frequencies(store: Store, folder: Path | None = None) -> Real:
    """How frequent each id is, in the mean over domains, float64[V], above 0; they sum to 1.

    Counted are training documents alone: held-out ones must not tell how they are coded. Of a
    domain up to 64 Mi tokens count, the first ones of each shard. Every id counts as half a
    token more than it was seen. Kept in `folder`, if there is one.
    """
    key = {"algorithm": ALGORITHM, "what": "frequencies", "store": store.store_hash}
    if folder is not None:
        for table in cache.kept(folder, key):
            known: Real = view(table.column("frequency"))
            return known
    found = _count(store)
    if folder is not None:
        cache.keep(folder, key, pa.RecordBatch.from_arrays([column(found)], ["frequency"]))
    return found


def _count(store: Store) -> Real:
    """Sums of floats hang on their order: it is that of the texts, of which each counts once."""
    mean, total, names = np.zeros(store.vocab_size), 0, names_of(store)
    for domain in sorted(names, key=names.__getitem__):
        if names[domain].copy:
            continue
        counts = _domain_counts(store, domain)
        mean += counts / max(1, counts.sum())
        total += int(counts.sum())
    mean += 0.5 / max(1, total)
    shares: Real = mean / mean.sum()
    return shares


def _domain_counts(store: Store, domain: str) -> NDArray[np.int64]:
    counts = np.zeros(store.vocab_size, np.int64)
    most = _COUNTED // max(1, len(store.domains[domain].shards))
    for documents in store.documents(domain):
        whole = int(np.searchsorted(documents.offsets, most, side="right")) - 1
        whole = min(max(whole, 1), len(documents))
        end = documents.offsets[whole]
        for first in range(0, int(end), _CHUNK):
            part = documents.tokens[first : min(first + _CHUNK, end)]
            counts += np.bincount(part, minlength=len(counts))
        held = np.flatnonzero(among(documents.doc_id[:whole], store.all_held_ids))
        counts -= np.bincount(documents.select(held).tokens, minlength=len(counts))
    return counts
