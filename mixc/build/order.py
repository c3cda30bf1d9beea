"""The order of domains along the mixture: Tijdeman's, then shuffled inside blocks.

Each stage is ordered by itself: its borders are whole rows for every domain, and blocks' ends.
"""

from __future__ import annotations

import numpy as np
from mixc_kernels.block_order import (
    assign_blocks,
    assign_blocks_of_ramp,
    rounding,
    shuffle_blocks,
)
from mixc_kernels.chairman import assign, assign_ramp, worst_error
from numpy.typing import NDArray

from mixc.build.schedule import Schedule
from mixc.rng import Stream

Index = NDArray[np.int64]
Labels = NDArray[np.uint16]
_WORDS = 1 << 20  # random words held at a time


def schedule_order(schedule: Schedule, *, shuffle_block: int, seed: int) -> Labels:
    """The domain of each row of the mixture, uint16[R]."""
    parts = []
    for one in schedule.stages:
        begin = one.begin if one.ramp else None
        options = {"shuffle_block": shuffle_block, "seed": seed, "first": one.first}
        parts.append(domain_order(one.counts, begin=begin, **options))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def schedule_error(
    labels: Labels, schedule: Schedule, *, shuffle_block: int
) -> tuple[float, float]:
    """The largest prefix error of all stages, in rows, and the bound that it keeps."""
    worst = most = 0.0
    for one in schedule.stages:
        part, begin = labels[one.first : one.first + one.rows], one.begin if one.ramp else None
        error = prefix_error(part, one.counts, shuffle_block=shuffle_block, begin=begin)
        worst, most = max(worst, error), max(most, bound(one.counts, ramp=one.ramp))
    return worst, most


def domain_order(
    rows: Index, *, shuffle_block: int, seed: int, begin: Index | None = None, first: int = 0
) -> Labels:
    """The domain of each row, uint16[R], from rows per domain, int64[K].

    `begin` is where a ramp of weights begins (`Stage.begin`), `first` the number of its first
    row. The bound holds at every block's end, of blocks of one row at every row.
    """
    if shuffle_block == 1:
        return assign(rows) if begin is None else assign_ramp(begin, rows)
    labels = (
        assign_blocks(rows, shuffle_block)
        if begin is None
        else assign_blocks_of_ramp(begin, rows, shuffle_block)
    )
    stream, step = Stream(seed, "order"), -(-_WORDS // shuffle_block) * shuffle_block
    for start in range(0, len(labels), step):
        part = labels[start : start + step]
        shuffle_blocks(part, shuffle_block, stream.words(len(part), first + start))
    return labels


def prefix_error(
    labels: Labels, rows: Index, *, shuffle_block: int, begin: Index | None = None
) -> float:
    """The largest |rows of a domain - its share| over all block ends, in rows.

    `rows` is int64[K]; the share of a prefix of n rows is n * rows / R, or that of a ramp.
    """
    return worst_error(labels, rows, shuffle_block, begin)


def bound(rows: Index, *, ramp: bool = False) -> float:
    """Tijdeman's bound for the domains that have rows; of a ramp, with what its limits round."""
    used = int(np.count_nonzero(rows))
    return 0.0 if used < 2 else 1 - 1 / (2 * used - 2) + ramp * rounding(int(rows.sum()))
