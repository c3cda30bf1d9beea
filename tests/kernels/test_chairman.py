import itertools

import numpy as np
import pytest
from build_helpers import tijdeman, worst_error
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels import chairman
from mixc_kernels.chairman import assign, assign_reference


def counts_of(values):
    return np.array(values, np.int64)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).map(counts_of))
def test_equals_the_reference_in_fractions(counts):
    labels = assign(counts)
    assert labels.dtype == np.uint16
    assert labels.tolist() == assign_reference(counts).tolist()


def test_every_small_case_keeps_the_bound():
    for counts in itertools.product(range(6), repeat=3):
        labels = assign(counts_of(counts))
        assert np.bincount(labels, minlength=3).tolist() == list(counts)
        assert worst_error(labels, counts) <= tijdeman(counts), counts


@st.composite
def skewed_counts(draw):
    """Rows of 2 to 100 domains, about 20 thousand in all, from even to very uneven."""
    domains, skew = draw(st.integers(2, 100)), draw(st.floats(0, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = np.exp(skew * generator.standard_normal(domains))
    total = draw(st.integers(domains, 20_000))
    return np.floor(weights / weights.sum() * total).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(skewed_counts())
def test_keeps_tijdemans_bound_at_every_prefix(counts):
    labels = assign(counts)
    assert np.bincount(labels, minlength=len(counts)).tolist() == counts.tolist()
    assert worst_error(labels, counts) <= tijdeman(counts)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=2, max_size=100).map(counts_of))
def test_keeps_tijdemans_bound_for_counts_that_share_factors(counts):
    labels = assign(counts)
    assert np.bincount(labels, minlength=len(counts)).tolist() == counts.tolist()
    assert worst_error(labels, counts) <= tijdeman(counts)


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_two_domains_are_never_more_than_half_a_row_off(a, b):
    assert worst_error(assign(counts_of([a, b])), [a, b]) <= 0.5


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0]])
def test_no_rows(counts):
    assert len(assign(counts_of(counts))) == 0


def test_one_domain_gets_every_row():
    assert assign(counts_of([5])).tolist() == [0] * 5
    assert assign(counts_of([0, 0, 5, 0])).tolist() == [2] * 5


def test_domains_without_rows_change_nothing():
    plain = assign(counts_of([7, 3, 90]))
    spread = assign(counts_of([0, 7, 0, 3, 90, 0]))
    assert spread.tolist() == counts_of([1, 3, 4])[plain].tolist()


@pytest.mark.parametrize("counts", [[1, 1_000_000], [1_000_000, 1, 1], [1, 1000, 999_000]])
def test_a_million_rows_of_very_uneven_domains(counts):
    labels = assign(counts_of(counts))
    assert np.bincount(labels).tolist() == counts
    assert worst_error(labels, counts) <= tijdeman(counts)


def test_more_domains_than_a_byte_counts():
    labels = assign(np.full(1000, 3))
    assert np.bincount(labels).tolist() == [3] * 1000
    assert worst_error(labels, [3] * 1000) <= tijdeman([3] * 1000)


def test_same_counts_give_the_same_order_and_are_left_alone():
    counts = counts_of([5, 0, 11, 2])
    first, second = assign(counts), assign(counts)
    assert first.tolist() == second.tolist()
    assert counts.tolist() == [5, 0, 11, 2]


def test_what_would_overflow_is_refused():
    with pytest.raises(ValueError, match="too many"):
        assign(counts_of([1 << 60, 1 << 60]))
    with pytest.raises(ValueError, match="too many"):
        assign(np.zeros((1 << 16) + 1, np.int64))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).map(counts_of), st.integers(1, 9))
def test_errors_are_the_same_where_squares_of_rows_overflow(counts, block):
    labels = assign(counts)[::-1].copy()  # no order that keeps a bound
    exact = chairman.worst_error(labels, counts, block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chairman, "_EXACT_ROWS", 0)
        assert chairman.worst_error(labels, counts, block) == pytest.approx(exact, abs=1e-9)
