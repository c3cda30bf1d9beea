"""Trainings in rounds: where rounds begin, and what their weights may know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.errors import MixcError
from mixc.solve.rounds import round_starts


def test_rounds_of_equal_and_of_other_lengths():
    assert round_starts([1, 1, 1, 1], 100) == [0, 25, 50, 75]
    assert round_starts([0.25, 0.25, 0.5], 8) == [0, 2, 4]


def test_too_few_steps_are_an_error():
    with pytest.raises(MixcError, match="3 steps are too few for weights that change 4 times"):
        round_starts([1, 1, 1, 1], 3)


@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=10), st.integers(200, 1000))
def test_every_round_has_a_step(lengths, steps):
    starts = round_starts(lengths, steps)
    assert starts[0] == 0 and len(starts) == len(lengths)
    assert all(a < b for a, b in zip(starts, [*starts[1:], steps], strict=True))
