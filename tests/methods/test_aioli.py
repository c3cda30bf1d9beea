"""Aioli's linear law, recovered from probes, and its weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixc.methods.aioli import effects, learn, normalised, probes, update


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0.1, 1.0))
def test_a_linear_world_is_recovered(seed, count, lean):
    A = np.random.default_rng(seed).normal(size=(count, count))
    mixes = probes(count, lean)
    assert mixes.sum(axis=1) == pytest.approx(np.ones(count))
    assert effects(mixes, mixes @ A.T) == pytest.approx(A, abs=1e-7)


def test_sweeps_are_averaged_and_rounds_smoothed():
    mixes, before = probes(2, 1.0), np.full((2, 2), 0.25)
    drops = np.array([[[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 3.0]]])
    assert learn(mixes, drops, before, 0.0) == pytest.approx(np.eye(2) / 2)
    assert learn(mixes, drops, before, 0.5) == pytest.approx((np.eye(2) / 2 + before) / 2)


def test_what_hurts_is_shifted_to_nothing():
    assert normalised(np.array([[1.0, -1.0], [0.0, 2.0]])).tolist() == [
        [2 / 6, 0.0],
        [1 / 6, 3 / 6],
    ]
    assert normalised(np.zeros((2, 2))).tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_weights_go_to_who_helps_most():
    A = np.array([[0.5, 0.0], [0.3, 0.2]])
    weights = update(np.array([0.5, 0.5]), A, 1.0)
    assert weights == pytest.approx(np.exp([0.8, 0.2]) / np.exp([0.8, 0.2]).sum())
