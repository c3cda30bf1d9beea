import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.rows.borders import Borders

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def counted(sizes):
    """Borders whose epochs are counted, and a list of the epochs that were."""
    asked = []

    def size(epoch):
        asked.append(epoch)
        return sizes[epoch % len(sizes)]

    return Borders(size), asked


@given(SIZES, st.lists(st.integers(0, 60), max_size=9))
def test_every_place_lies_in_its_epoch(sizes, places):
    owner = [e for e in range(70) for _ in range(sizes[e % len(sizes)])]
    borders, asked = counted(sizes)
    assert borders.holding(np.array(places, np.int64)).tolist() == [owner[i] for i in places]
    assert borders.begin(np.arange(20)).tolist() == [owner.index(e) for e in range(20)]
    assert borders.one(3) == (owner.index(3), owner.index(4))
    assert asked == list(range(len(asked)))  # in order, each once


@given(st.integers(1, 9), st.lists(st.integers(0, 60), max_size=9))
def test_even_epochs_are_not_counted(size, places):
    even, (other, _) = Borders(size), counted([size])
    asked = np.array(places, np.int64)
    assert even.holding(asked).tolist() == other.holding(asked).tolist()
    assert even.begin(asked).tolist() == other.begin(asked).tolist()
    assert even.one(7) == other.one(7)
    assert even.holding(np.array([10**15])).tolist() == [10**15 // size]


@given(SIZES, st.one_of(st.integers(0, 80), st.just(np.inf)), st.integers(1, 100))
def test_the_size_of_quarters_of_epochs(sizes, quarters, most):
    borders, asked = counted(sizes)
    found = borders.within(quarters / 4, most)
    whole = min(int(quarters // 4), 200) if quarters < np.inf else 200
    every = [sizes[e % len(sizes)] for e in range(whole)]
    part = 0 if quarters == np.inf else int(sizes[whole % len(sizes)] * (quarters % 4) / 4)
    assert found == min(most, sum(every) + part)
    assert len(asked) <= most + 1
    if quarters < np.inf:
        assert len(asked) <= quarters / 4 + 1
    if len(set(sizes)) == 1:
        assert Borders(sizes[0]).within(quarters / 4, most) == found


@pytest.mark.parametrize("epochs", [0, 0.5, 3])
def test_no_row_is_within_nothing(epochs):
    assert Borders(4).within(epochs, 0) == 0
