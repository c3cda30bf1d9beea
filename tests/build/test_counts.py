from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mixc.build.counts import row_counts, water_fill
from mixc.errors import MixcError


def free(weights, rows):
    return np.full(len(weights), rows, np.int64)


def largest_remainder(shares, rows):
    """Hamilton's method in fractions; of equal remainders the first domains win."""
    targets = [Fraction(share) * rows / Fraction(sum(shares)) for share in shares]
    counts = [int(target) for target in targets]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - targets[i], i))
    for i in by_remainder[: rows - sum(counts)]:
        counts[i] += 1
    return counts


# Parts of 2^20, so that every product with up to 2^30 rows is exact in float64.
@st.composite
def dyadic(draw):
    cuts = sorted(draw(st.lists(st.integers(0, 1 << 20), max_size=30)))
    return np.diff([0, *cuts, 1 << 20])


@settings(deadline=None)
@given(dyadic(), st.integers(1, 10**9))
def test_without_a_cap_it_is_largest_remainder_exactly(parts, rows):
    counts = row_counts(parts / (1 << 20), rows, free(parts, rows))
    assert counts.rows.tolist() == largest_remainder(parts.tolist(), rows)
    assert not counts.capped.any()


@st.composite
def simplex(draw):
    """Weights from even to very uneven, some of them 0."""
    raw = draw(arrays(float, st.integers(1, 40), elements=st.floats(0, 1)))
    raw = raw ** draw(st.sampled_from([1, 4, 20]))
    return raw / raw.sum() if raw.sum() > 0 else np.eye(len(raw))[0]


@settings(max_examples=150, deadline=None)
@given(simplex(), st.integers(1, 10**9))
def test_without_a_cap_each_count_is_within_one_of_its_share(weights, rows):
    counts = row_counts(weights, rows, free(weights, rows))
    assert counts.rows.sum() == rows
    assert not counts.rows[weights == 0].any()
    total = sum(map(Fraction, weights.tolist()))
    for weight, count in zip(weights.tolist(), counts.rows.tolist(), strict=True):
        assert abs(count - Fraction(weight) * rows / total) < 1
    assert counts.weights.sum() == pytest.approx(1)


@st.composite
def capped(draw):
    """(weights, rows, capacity) that can be built."""
    weights = draw(simplex())
    capacity = draw(arrays(np.int64, len(weights), elements=st.integers(0, 1000)))
    most = int(capacity[weights > 0].sum())
    if most == 0:
        capacity, most = capacity + 1, int(np.count_nonzero(weights))
    return weights, draw(st.integers(1, most)), capacity


@settings(max_examples=150, deadline=None)
@given(capped())
def test_under_a_cap(problem):
    weights, rows, capacity = problem
    counts = row_counts(weights, rows, capacity)
    assert counts.rows.sum() == rows
    assert (counts.rows >= 0).all()
    assert (counts.rows <= capacity).all()
    assert not counts.rows[weights == 0].any()
    wanted = weights * rows
    clearly = np.abs(wanted - capacity) > 1e-6 * wanted
    assert (counts.capped == (wanted > capacity))[clearly].all()
    assert (counts.rows == capacity)[counts.capped].all()
    # What is not full stays in proportion: one level fits them all, to the row.
    room = (weights > 1e-9) & (counts.rows < capacity - 1)
    low = (counts.rows[room] - 1.001) / weights[room]
    high = (counts.rows[room] + 1.001) / weights[room]
    assert low.max(initial=-np.inf) <= high.min(initial=np.inf)
    # And nobody who is not capped pays for it.
    assert (counts.rows[~counts.capped] > wanted[~counts.capped] - 1.001).all()


def test_what_is_cut_goes_to_the_others_in_proportion():
    counts = row_counts(np.array([0.5, 0.3, 0.2]), 100, np.array([10, 1000, 1000]))
    assert counts.rows.tolist() == [10, 54, 36]
    assert counts.capped.tolist() == [True, False, False]
    assert counts.weights.tolist() == [0.1, 0.54, 0.36]


@pytest.mark.parametrize("tiny", [0.0, 1e-20, 1e-308])
def test_a_cap_that_fits_exactly_cuts_nothing(tiny):
    counts = row_counts(np.array([tiny, 0.5, 0.5]), 100, np.array([9, 50, 50]))
    assert counts.rows.tolist() == [0, 50, 50]
    assert not counts.capped.any()


def test_a_domain_filled_by_what_others_leave_is_not_called_cut():
    counts = row_counts(np.array([0.6, 0.2, 0.2]), 100, np.array([10, 30, 100]))
    assert counts.rows.tolist() == [10, 30, 60]
    assert counts.capped.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("weights", "capacity"), [([0.5, 0.5], [4, 5]), ([1.0, 0.0], [9, 100]), ([0.5, 0.5], [0, 0])]
)
def test_too_little_data_is_mx060(weights, capacity):
    with pytest.raises(MixcError) as raised:
        row_counts(np.array(weights), 10, np.array(capacity))
    assert raised.value.code == "MX060"
    assert str(sum(c for w, c in zip(weights, capacity, strict=True) if w)) in raised.value.message


def test_all_of_the_data():
    counts = row_counts(np.array([1e-12, 1 - 1e-12]), 10, np.array([4, 6]))
    assert counts.rows.tolist() == [4, 6]


def test_a_thousand_uneven_domains_and_a_billion_rows():
    weights = np.exp(5 * np.random.default_rng(0).standard_normal(1000))
    weights /= weights.sum()
    rows = 10**9
    counts = row_counts(weights, rows, free(weights, rows))
    assert counts.rows.sum() == rows
    assert np.abs(counts.rows - weights * rows).max() < 1
    room = np.full(1000, 1_100_000)
    counts = row_counts(weights, rows, room)
    assert counts.rows.sum() == rows
    assert (counts.rows <= room).all()


def test_a_weight_of_next_to_nothing():
    weights = np.array([1e-12, 1.0]) / (1 + 1e-12)
    assert row_counts(weights, 1000, free(weights, 1000)).rows.tolist() == [0, 1000]
    rows = 10**9
    assert row_counts(weights, rows, free(weights, rows)).rows.tolist() == [0, rows]
    assert row_counts(weights, rows, np.array([rows, rows - 7])).rows.tolist() == [7, rows - 7]


# ---- water-filling ----


@st.composite
def pools(draw):
    """(shares, room, total) with room for the total."""
    size = draw(st.integers(1, 30))
    shares = draw(arrays(float, size, elements=st.floats(0, 1)))
    room = draw(arrays(float, size, elements=st.floats(0, 1e6)))
    return shares, room, draw(st.floats(0, 1)) * room[shares > 0].sum()


@settings(max_examples=150, deadline=None)
@given(pools())
def test_water_fill(pool):
    shares, room, total = pool
    amount = water_fill(shares, room, total)
    assert amount.sum() == pytest.approx(total, rel=1e-9, abs=1e-9)
    assert (amount >= 0).all()
    assert (amount <= room * (1 + 1e-12)).all()
    assert not amount[shares == 0].any()
    # Those with room left stand at one level; those that are full would stand higher.
    unfull = (shares > 1e-9) & (amount < room * (1 - 1e-9)) & (amount > 1e-9)
    if unfull.any():
        level = amount[unfull] / shares[unfull]
        assert level == pytest.approx(level[0], rel=1e-6)
        full = (shares > 1e-9) & (amount >= room * (1 - 1e-9))
        assert (room[full] <= level[0] * shares[full] * (1 + 1e-6)).all()


@pytest.mark.parametrize(("epochs", "wanted"), [(2, [2, 20, 38]), (1, [1, 10, 49])])
def test_unimax_of_the_reference_page(epochs, wanted):
    sizes = np.array([1.0, 10.0, 100.0])
    assert water_fill(np.ones(3), epochs * sizes, 60).tolist() == pytest.approx(wanted)
