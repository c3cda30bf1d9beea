import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mixc.errors import MixcError
from mixc.rng import Stream
from mixc.solve.swarm import default_runs, dirichlet, plan_swarm


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 20), st.integers(0, 99), st.floats(0.05, 1.0), st.data())
def test_every_mix_is_feasible(k, seed, room, data):
    rng = np.random.default_rng(seed)
    natural = rng.dirichlet(np.full(k, 0.5)) + 1e-9
    cap = np.minimum(1, 1 / k + room * rng.random(k))
    cap = np.minimum(1, cap / min(1, cap.sum()) * (1 + 1e-9))
    minimum = data.draw(st.floats(0, 0.5 / k))
    mixes = plan_swarm(natural, seed=seed, max_ratio=cap, minimum=minimum)
    assert len(mixes) == default_runs(k) == 3 * (k + 1)
    assert mixes.sum(axis=1) == pytest.approx(np.ones(len(mixes)), abs=1e-9)
    assert (mixes <= cap + 1e-9).all()
    assert (mixes >= np.minimum(minimum, cap) - 1e-9).all()


def test_the_first_are_natural_and_uniform():
    natural = np.array([0.7, 0.2, 0.1])
    mixes = plan_swarm(natural, 12)
    assert mixes[0] == pytest.approx(natural)
    assert mixes[1] == pytest.approx(np.full(3, 1 / 3))
    assert len(np.unique(mixes, axis=0)) == 12


def test_a_plan_repeats_and_another_seed_is_another():
    natural = np.array([0.7, 0.2, 0.1])
    assert np.array_equal(plan_swarm(natural, seed=3), plan_swarm(natural, seed=3))
    assert not np.allclose(plan_swarm(natural, seed=3)[2:], plan_swarm(natural, seed=4)[2:])


def test_domains_that_trade_places_trade_columns():
    natural, cap = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.6, 1.0, 0.4, 0.2])
    order = np.array([2, 0, 3, 1])
    moved = plan_swarm(natural[order], 30, max_ratio=cap[order])
    assert moved == pytest.approx(plan_swarm(natural, 30, max_ratio=cap)[:, order], abs=1e-12)


def test_domains_without_tokens_have_no_weight():
    mixes = plan_swarm(np.array([0.5, 0.0, 0.5]), 20, minimum=0.1)
    assert (mixes[:, 1] == 0).all()
    assert (mixes[:, [0, 2]] >= 0.1 - 1e-12).all()


def test_mixes_go_from_nearly_one_domain_to_near_the_flattened_mix():
    mixes = plan_swarm(np.full(10, 0.1), 400, seed=1, strength=(0.5, 200.0))
    largest = mixes[2:].max(axis=1)
    assert np.median(largest[:50]) > 0.7
    assert np.median(largest[-50:]) < 0.2


def test_draws_are_of_the_dirichlet_distribution():
    alpha = np.array([0.05, 0.5, 3.0])
    drawn = dirichlet(np.tile(alpha, (4000, 1)), Stream(0, "test"))
    for j in range(3):
        marginal = stats.beta(alpha[j], alpha.sum() - alpha[j])
        assert stats.kstest(drawn[:, j], marginal.cdf).pvalue > 1e-3
    assert np.isfinite(dirichlet(np.full((500, 60), 1e-3), Stream(0, "tiny"))).all()


@pytest.mark.parametrize("options", [{"runs": 2}, {"minimum": 0.5}, {"minimum": -0.1}])
def test_plans_that_cannot_be(options):
    with pytest.raises(MixcError) as raised:
        plan_swarm(np.full(3, 1 / 3), **options)
    assert raised.value.code == "MX007"
