import numpy as np
import pytest

from mixc.errors import MixcError
from mixc.solve.swarm_space import reusing, whole

DOMAINS = ("a", "b", "c", "new")
NATURAL = np.array([0.4, 0.3, 0.2, 0.1])
OPEN = np.ones(4)
BEFORE = {"a": 0.6, "b": 0.2, "c": 0.1, "gone": 0.1}


def test_a_whole_space_is_the_domains():
    space = whole(NATURAL, OPEN)
    assert space.mixes(NATURAL).tolist() == NATURAL.tolist()


def test_what_was_weighed_keeps_its_proportions():
    space = reusing(BEFORE, (), DOMAINS, NATURAL, OPEN)
    assert space.natural == pytest.approx([0.1, 0.9])
    mix = space.mixes(np.array([0.25, 0.75]))
    assert mix[3] == pytest.approx(0.25)
    assert mix[:3] == pytest.approx(0.75 * np.array([0.6, 0.2, 0.1]) / 0.9)


def test_changed_domains_are_solved_again():
    space = reusing(BEFORE, ("b",), DOMAINS, NATURAL, OPEN)
    assert space.natural == pytest.approx([0.3, 0.1, 0.6])
    mixes = space.mixes(np.array([[0.2, 0.1, 0.7], [1.0, 0.0, 0.0]]))
    assert mixes[0, 0] / mixes[0, 2] == pytest.approx(6)
    assert mixes[1].tolist() == [0, 1, 0, 0]
    assert mixes.sum(axis=1) == pytest.approx(1)


def test_caps_hold_inside_the_common_part():
    cap = np.array([0.3, 1.0, 1.0, 1.0])
    space = reusing(BEFORE, (), DOMAINS, NATURAL, cap)
    assert space.cap == pytest.approx([1.0, 0.45])
    assert (space.mixes(np.array([0.55, 0.45])) <= cap + 1e-12).all()


@pytest.mark.parametrize(
    ("before", "changed", "cap", "code"),
    [
        (BEFORE, ("x",), OPEN, "MX061"),
        ({**BEFORE, "new": 0.0}, (), OPEN, "MX061"),
        (BEFORE, ("a", "b", "c"), OPEN, "MX061"),
        ({"a": 0.0, "gone": 1.0}, (), OPEN, "MX061"),
        (BEFORE, (), np.array([0.1, 1.0, 1.0, 0.2]), "MX060"),
    ],
)
def test_what_cannot_be_reused(before, changed, cap, code):
    with pytest.raises(MixcError) as raised:
        reusing(before, changed, DOMAINS, NATURAL, cap)
    assert raised.value.code == code
