"""The order of domains along the mixture: Tijdeman's, then shuffled inside blocks."""

from __future__ import annotations

import numpy as np
from mixc_kernels.chairman import assign
from numpy.typing import NDArray

from mixc.rng import Stream

Index = NDArray[np.int64]
Labels = NDArray[np.uint16]


def domain_order(rows: Index, *, shuffle_block: int, seed: int) -> Labels:
    """The domain of each row, uint16[R], from rows per domain, int64[K].

    At every block's end the counts are those of the unshuffled order, so its bound holds there.
    """
    labels = assign(rows)
    if shuffle_block == 1:
        return labels
    stream = Stream(seed, "order")
    whole = len(labels) // shuffle_block * shuffle_block
    step = max(1, (1 << 22) // shuffle_block) * shuffle_block
    for start in range(0, whole, step):
        part = labels[start : min(start + step, whole)].reshape(-1, shuffle_block)
        keys = stream.words(part.size, start).reshape(part.shape)
        part[:] = np.take_along_axis(part, np.argsort(keys, axis=1, kind="stable"), axis=1)
    rest = labels[whole:]
    rest[:] = rest[np.argsort(stream.words(len(rest), whole), kind="stable")]
    return labels


def prefix_error(labels: Labels, rows: Index, *, shuffle_block: int) -> float:
    """The largest |rows of a domain - its share| over all block ends, in rows.

    `rows` is int64[K]; the share of a prefix of n rows is n * rows / R.
    """
    total, domains, worst = len(labels), len(rows), 0.0
    counts = np.zeros(domains, np.int64)
    step = max(1, (1 << 22) // (shuffle_block * domains)) * shuffle_block
    for start in range(0, total, step):
        part = labels[start : start + step]
        block = np.arange(len(part)) // shuffle_block
        found = np.bincount(block * domains + part, minlength=(int(block[-1]) + 1) * domains)
        seen = counts + np.cumsum(found.reshape(-1, domains), axis=0)
        ends = np.minimum(start + shuffle_block * (1 + np.arange(len(seen))), start + len(part))
        # In whole numbers: R times the error, so that only the last step rounds.
        error = np.abs(seen * total - ends[:, None] * rows).max()
        worst, counts = max(worst, float(error) / total), seen[-1]
    return worst


def bound(rows: Index) -> float:
    """Tijdeman's bound for the domains that have rows."""
    used = int(np.count_nonzero(rows))
    return 0.0 if used < 2 else 1 - 1 / (2 * used - 2)
