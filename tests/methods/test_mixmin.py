"""MixMin's convex problem, on sources whose models are known exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixc.methods.mixmin import mix_models


def unigrams(seed, sources, words):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(words), size=sources)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.lists(st.floats(0.05, 1), min_size=2, max_size=5))
def test_a_target_that_is_a_known_mix_is_found(seed, raw):
    beta = np.array(raw) / np.sum(raw)
    models = unigrams(seed, len(beta), 40)
    # Every word once, counted by how often the target holds it.
    found = mix_models(-np.log(models.T), beta @ models)
    assert found.weights == pytest.approx(beta, abs=2e-3)
    entropy = -(beta @ models) @ np.log(beta @ models)
    assert found.value == pytest.approx(entropy, abs=1e-8)
    assert 0 <= found.gap <= 1e-4


def test_it_is_the_least_of_all_mixes_and_says_how_near():
    losses = -np.log(unigrams(3, 3, 20).T)
    share = unigrams(4, 1, 20)[0]
    found = mix_models(losses, share)
    for other in np.random.default_rng(5).dirichlet(np.ones(3), size=200):
        value = share @ -np.log(np.exp(-losses) @ other)
        assert value >= found.value - 1e-9


def test_a_source_that_is_never_better_gets_nothing():
    good, bad = np.full(10, 0.5), np.full(10, 3.0)
    found = mix_models(np.stack([good, bad], axis=1), np.full(10, 0.1))
    assert found.weights == pytest.approx([1, 0], abs=1e-8)
    assert found.value == pytest.approx(0.5)


def test_order_of_sources_and_large_losses_change_nothing():
    losses = -np.log(unigrams(7, 4, 30).T) + 1000
    share = np.full(30, 1 / 30)
    order = np.array([2, 0, 3, 1])
    a, b = mix_models(losses, share), mix_models(losses[:, order], share)
    assert b.weights == pytest.approx(a.weights[order], abs=1e-9)
    assert np.isfinite(a.value)
