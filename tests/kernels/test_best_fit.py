import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.best_fit import best_fit, best_fit_reference

pieces = st.integers(1, 40).flatmap(
    lambda size: st.tuples(st.lists(st.integers(1, size), max_size=60), st.just(size))
)


@settings(max_examples=300, deadline=None)
@given(pieces)
def test_every_piece_goes_where_the_reference_puts_it(case):
    lengths, size = np.array(case[0], np.int64), case[1]
    assert best_fit(lengths, size).tolist() == best_fit_reference(lengths, size).tolist()


@settings(max_examples=200, deadline=None)
@given(pieces)
def test_rows_hold_their_pieces_and_are_few(case):
    lengths, size = np.array(case[0], np.int64), case[1]
    rows = best_fit(lengths, size)
    held = np.bincount(rows, weights=lengths).astype(int)
    assert held.max(initial=0) <= size
    assert held.min(initial=1) >= 1  # no row is empty
    # No two rows would fit in one.
    assert np.sort(held)[:2].sum() > size or len(held) < 2


@pytest.mark.parametrize("size", [1, 2, 3, 2**20])
def test_rows_of_extreme_sizes(size):
    rows = best_fit(np.array([1, size, 1], np.int64), size)
    assert len(set(rows.tolist())) == (3 if size == 1 else 2)
    assert rows.tolist() == best_fit_reference(np.array([1, size, 1], np.int64), size).tolist()


@pytest.mark.parametrize("wrong", [0, 9, -1])
def test_a_piece_that_no_row_can_hold_is_refused(wrong):
    with pytest.raises(ValueError, match="a piece"):
        best_fit(np.array([3, wrong], np.int64), 8)


def test_long_lists_agree_with_the_reference():
    lengths = np.random.default_rng(0).geometric(0.02, 1500).clip(1, 256)
    assert best_fit(lengths, 256).tolist() == best_fit_reference(lengths, 256).tolist()
