import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mixc.errors import MixcError
from mixc.solve.simplex import (
    exponentiated_step,
    kl_divergence,
    minimise,
    project,
    repetition_cap,
)


@st.composite
def capped(draw):
    """(shares, caps that sum to more than 1) of 1 to 8 domains."""
    k = draw(st.integers(1, 8))
    shares = draw(arrays(float, k, elements=st.floats(1e-6, 1.0)))
    room = draw(arrays(float, k, elements=st.floats(0.05, 1.0)))
    return shares, np.minimum(1.0, room / min(1.0, room.sum()) * (1 + 1e-12))


@given(capped())
def test_projections_sum_to_one_under_the_cap(case):
    shares, cap = case
    found = project(shares, cap)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert (found <= cap + 1e-12).all()
    assert (found >= 0).all()
    # In proportion to their shares where they are not full: the nearest in KL divergence.
    loose = found < cap - 1e-9
    ratios = found[loose] / shares[loose]
    assert np.allclose(ratios, ratios[:1], rtol=1e-6)
    assert project(found, cap) == pytest.approx(found, abs=1e-9)


def test_what_no_named_domain_can_take_goes_to_the_others():
    found = project(np.array([1.0, 0.0, 0.0]), np.array([0.4, 0.9, 0.3]))
    assert found == pytest.approx([0.4, 0.45, 0.15])


def test_caps_are_epochs_of_the_target():
    tokens = np.array([10, 100, 0])
    assert repetition_cap(tokens, 100, 4.0).tolist() == [0.4, 1.0, 0.0]
    assert repetition_cap(tokens, 100, None).tolist() == [1.0, 1.0, 0.0]
    assert repetition_cap(tokens, None, 4.0).tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(MixcError) as raised:
        repetition_cap(tokens, 1000, 4.0)
    assert raised.value.code == "MX060"


def test_divergence():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    assert kl_divergence(p, q) == pytest.approx(0.5 * np.log(2))
    assert kl_divergence(q, p) == np.inf
    assert kl_divergence(p, p) == 0


def test_a_step_is_the_minimum_that_it_claims():
    rng = np.random.default_rng(0)
    here, natural = rng.dirichlet(np.ones(4), 2)
    gradient, eta, kl = rng.normal(size=4), 0.7, 0.3

    def value(p):
        return gradient @ p + kl * kl_divergence(p, natural) + kl_divergence(p, here) / eta

    found = exponentiated_step(here, gradient, eta, natural=natural, kl=kl)
    assert all(value(found) < value(p) for p in rng.dirichlet(np.ones(4), 500))
    near = found * np.exp(1e-4 * rng.normal(size=(200, 4)))
    assert all(value(found) <= value(project(p)) for p in near)


# ---- planted laws ----


def planted(p):
    """T10: L1 = 2 + e^(-2 r), L2 = 1 + 1.5 e^(-3 (1 - r)); their mean, and its gradient."""
    first, second = np.exp(-2 * p[0]), 1.5 * np.exp(-3 * p[1])
    return (3 + first + second) / 2, np.array([-2 * first, -3 * second]) / 2


def test_t10_the_planted_law_of_two_domains():
    found, value = minimise(planted, np.array([0.5, 0.5]))
    assert found[0] == pytest.approx((3 - np.log(2.25)) / 5, abs=1e-6)
    assert found[0] == pytest.approx(0.4378, abs=5e-5)
    assert value == pytest.approx(1.847, abs=5e-4)


def law(slopes):
    def function(p):
        heights = np.exp(p @ slopes)
        return heights.mean(), slopes @ heights / len(heights)

    return function


@settings(deadline=None, max_examples=25)
@given(capped(), st.integers(0, 999), st.sampled_from([0.0, 0.05, 1.0]))
def test_minima_do_not_depend_on_the_start_or_the_order_of_domains(case, seed, kl):
    shares, cap = case
    k = len(cap)
    rng = np.random.default_rng(seed)
    slopes = -rng.exponential(2.0, (k, k + 3))  # more metrics than domains: one lowest point
    natural, other = rng.dirichlet(np.ones(k), 2)
    found, value = minimise(law(slopes), shares, natural=natural, kl=kl, cap=cap)
    assert found.sum() == pytest.approx(1, abs=1e-9)
    assert (found <= cap + 1e-12).all()
    again, _ = minimise(law(slopes), other, natural=natural, kl=kl, cap=cap)
    assert again == pytest.approx(found, abs=1e-6)
    order = rng.permutation(k)
    moved, same = minimise(
        law(slopes[order]), shares[order], natural=natural[order], kl=kl, cap=cap[order]
    )
    assert moved == pytest.approx(found[order], abs=1e-6)
    assert same == pytest.approx(value, abs=1e-12)
    for p in rng.dirichlet(np.ones(k), 50):
        p = project(p, cap)
        there = law(slopes)(p)[0] + (kl * kl_divergence(p, natural) if kl else 0)
        assert value <= there + 1e-12


def test_a_strong_pull_leads_to_the_natural_mix():
    natural = np.array([0.2, 0.8])
    assert minimise(planted, np.full(2, 0.5), natural=natural, kl=1e6)[0] == pytest.approx(
        natural, abs=1e-5
    )
