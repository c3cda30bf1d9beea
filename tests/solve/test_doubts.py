"""What is said of solved weights that are to be doubted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.solve.doubts import doubts, effective_domains, spread, total_variation

NAMES = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")
UNIFORM = np.full(10, 0.1)
TILTED = np.array([0.3, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05])


def said(weights=TILTED, natural=UNIFORM, half=0.001, **options):
    return doubts(NAMES, weights, weights - half, weights + half, natural, **options)


def test_weights_that_are_sure_are_not_doubted():
    steady = np.tile(TILTED, (20, 1))
    assert said(trajectory=steady, seeds=steady[:3], epochs=TILTED * 10, max_epochs=4) == []


def test_nearly_one_hot():
    weights = np.array([0.91] + [0.01] * 9)
    (text,) = said(weights)
    assert "'a'" in text and "0.91" in text


def test_few_effective_domains():
    (text,) = said(np.array([0.5, 0.5] + [0.0] * 8))
    assert "2.0 effective domains of 10" in text


def test_a_trajectory_that_still_moves():
    moving = np.concatenate([np.tile(UNIFORM, (10, 1)), np.tile(TILTED, (10, 1))])
    (text,) = said(trajectory=moving)
    assert "not settled: 0.30" in text


def test_seeds_that_disagree():
    (text,) = said(seeds=np.stack([UNIFORM, TILTED]))
    assert "seeds disagree: total variation 0.30" in text


def test_intervals_as_wide_as_the_way_from_natural():
    (text,) = said(half=0.06)
    assert "noise may explain" in text


def test_what_the_cap_will_cut():
    epochs = np.array([9.0, 5.0] + [1.0] * 8)
    first, second = said(epochs=epochs, max_epochs=4)
    assert "'a' would be read 9.0 times" in first and "'b'" in second


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12), st.randoms())
def test_laws_of_distances(raw, random):
    weights = np.array(raw) / np.sum(raw)
    other = np.array(random.sample(raw, len(raw))) / np.sum(raw)
    assert total_variation(weights, weights) == 0
    assert 0 <= total_variation(weights, other) <= 1
    assert total_variation(weights, other) == total_variation(other, weights)
    assert 1 <= effective_domains(weights) + 1e-9 <= len(raw) + 2e-9
    assert effective_domains(other) == pytest.approx(effective_domains(weights))
    assert spread(np.stack([weights, other])) == total_variation(other, weights)
