import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixc_kernels.sort_columns import sort_columns, sort_columns_reference


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers(6, 9))
def test_equals_the_reference(keys, count):
    key = np.array(keys, np.int64)
    columns = np.stack([key, np.arange(len(key)), key * 7])
    assert sort_columns(columns, count).tolist() == sort_columns_reference(columns).tolist()


@pytest.mark.parametrize("key", [-1, 3])
def test_keys_out_of_range_are_refused(key):
    with pytest.raises(ValueError, match="not in"):
        sort_columns(np.array([[0, key, 2], [5, 6, 7]]), 3)
