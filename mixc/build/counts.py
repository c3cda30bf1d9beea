"""Weights to whole rows per domain: exact, under a cap on epochs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError

Real = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Rows per domain, int64[K], and which domains the cap has cut, bool[K]."""

    rows: Index
    capped: NDArray[np.bool_]

    @property
    def weights(self) -> Real:
        """The weights that the rows realise, float64[K]."""
        return np.asarray(self.rows / self.rows.sum(), np.float64)


def water_fill(shares: Real, room: Real, total: float) -> Real:
    """Spread `total` in proportion to `shares` with at most `room` each, float64[K].

    What a full domain cannot take is spread over the others, in proportion to their shares.
    `total` must not exceed the room of the domains with a share.
    """
    amount = np.zeros(len(shares))
    open_ = shares > 0
    left = float(total)
    while left > 0 and open_.any():
        wanted = left * (np.where(open_, shares, 0) / shares[open_].sum())
        full = open_ & (wanted >= room)
        if not full.any():
            amount[open_] = wanted[open_]
            break
        amount[full] = room[full]
        left = total - amount.sum()
        open_ &= ~full
    return amount


def capacity(tokens: Index, *, rows: int, seq_len: int, max_epochs: float | None) -> Index:
    """Rows that each domain can give to a mixture of `rows` rows, int64[K].

    `tokens` is int64[K], what each domain has for training. A row belongs to the epoch in which
    its last token lies, so a cap of e epochs leaves the rows that fit in e * tokens.
    """
    budgets = [
        count * (np.inf if max_epochs is None else max_epochs) if count else 0.0
        for count in tokens.tolist()
    ]
    room = [rows if budget >= rows * seq_len else int(budget) // seq_len for budget in budgets]
    return np.array(room, np.int64)


def row_counts(weights: Real, rows: int, capacity: Index) -> Counts:
    """Whole rows per domain by largest remainder, at most `capacity` (int64[K]) each.

    Without a cap each count is within one of `weights * rows`. Raises MX060 if the domains that
    have a weight hold fewer than `rows` rows in all.
    """
    room = np.where(weights > 0, capacity, 0)
    if int(room.sum()) < rows:
        raise MixcError(
            "MX060",
            f"the mixture wants {rows} rows, but its domains hold {int(room.sum())}",
            help="ask for fewer tokens, raise mixture.max_epochs, or give weight to more domains",
        )
    target = water_fill(weights, room.astype(np.float64), rows)
    # A hair below the floor, so that rounding never gives a domain more than its share.
    whole = np.floor(target * (1 - 1e-12)).astype(np.int64)
    while missing := rows - int(whole.sum()):
        remainder = np.where(whole < room, target - whole, -np.inf)
        whole[np.argsort(-remainder, kind="stable")[: min(missing, int((whole < room).sum()))]] += 1
    # A hair less, so that rounding never calls cut what fits exactly.
    return Counts(whole, weights * rows / weights.sum() * (1 - 1e-9) > room)


def spread(shares: Real, rows: Index, room: Index) -> Real:
    """Rows of each domain in each stage, not yet whole, float64[S, K], at most `room` in all.

    `shares` is float64[S, K], each stage's weights, `rows` int64[S]. A domain whose cap binds is
    cut by one factor in every stage, and what a stage loses by it goes to its other domains in
    proportion to their shares there: with one stage, this is `water_fill`. Raises MX060 if the
    domains that the stages name hold too little.
    """
    factor, most = np.ones(shares.shape[1]), room.astype(np.float64)
    if len(shares) == 1:
        return water_fill(shares[0], most, float(rows[0]))[None]
    for _ in range(_ROUNDS):
        cut = shares * factor
        amount = cut * (rows / np.maximum(cut.sum(axis=1), 1e-300))[:, None]
        total = amount.sum(axis=0)
        if (total <= most * (1 + 1e-12) + 1e-9).all():
            if abs(total.sum() - rows.sum()) > 1e-9 * rows.sum():
                break  # a stage of nothing but domains that are cut to nothing
            return np.asarray(amount, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(total > 0, np.minimum(1, factor * (most / total)), factor)
    raise MixcError(
        "MX060",
        "the stages of the mixture want more rows of their domains than these hold",
        help="ask for fewer tokens, raise mixture.max_epochs, or give weight to more domains",
    )


_ROUNDS = 20_000


def stage_counts(shares: Real, rows: Index, room: Index) -> Index:
    """Whole rows of each domain in each stage, int64[S, K]; arguments as of `spread`.

    At each stage's end every domain has the rows due until then (`spread`), rounded down or up:
    what a stage rounds off is carried to the next. Who is rounded up is decided by who must be
    soonest, then by largest remainder. With one stage this is `row_counts`.
    """
    if int(np.where(shares.any(axis=0), room, 0).sum()) < rows.sum() or len(rows) == 1:
        return row_counts(shares.mean(axis=0), int(rows.sum()), room).rows[None]
    due = np.cumsum(spread(shares, rows, room), axis=0)
    whole = np.rint(due)
    due = np.where(np.abs(due - whole) <= 1e-12 * due + 1e-9, whole, due)
    least, most = np.floor(due).astype(np.int64), np.minimum(np.ceil(due), room).astype(np.int64)
    ends, have = np.cumsum(rows), np.zeros((len(rows) + 1, len(room)), np.int64)
    for stage, end in enumerate(ends):
        got = np.maximum(have[stage], least[stage])
        # The first stage at whose end the next row must be there; after the last: none.
        later = np.vstack([least[stage:] > got, np.ones(len(room), bool)])
        order = np.lexsort((got - due[stage], later.argmax(axis=0)))
        order = order[got[order] < most[stage][order]]
        got[order[: int(end) - int(got.sum())]] += 1
        have[stage + 1] = got
    return np.diff(have, axis=0)
