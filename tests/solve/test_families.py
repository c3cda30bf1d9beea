"""Log-linear laws, Gaussian processes and boosted trees, each by itself."""

import numpy as np
import pytest

from mixc.solve import boosting, gaussian, log_linear
from mixc.solve.swarm import plan_swarm

K, RUNS = 4, 60
MIXES = plan_swarm(np.array([0.4, 0.3, 0.2, 0.1]), RUNS, seed=1)
SLOPES = -np.array([[3.0, 1.0, 0.2], [0.5, 2.0, 0.3], [0.2, 0.3, 4.0], [0.1, 0.1, 1.0]])


def law(mixes):
    return np.array([1.0, 2.0, 0.5]) + np.exp(mixes @ SLOPES + 0.3)


FITS = {
    "log_linear": lambda x, y: log_linear.fit(x, y),
    "gaussian": lambda x, y: gaussian.fit(x, y, seed=0),
    "boosting": lambda x, y: boosting.fit(x, y),
}
SMOOTH = ("log_linear", "gaussian")


def explained(truth, found):
    return 1 - ((truth - found) ** 2).mean(axis=0) / truth.var(axis=0)


def test_a_planted_law_is_recovered_exactly():
    fitted = log_linear.fit(MIXES, law(MIXES))
    assert fitted.offset == pytest.approx([1.0, 2.0, 0.5], abs=1e-4)
    # A constant can move between bias and slopes, as ratios sum to 1: differences are the law's.
    apart = fitted.slope - fitted.slope[:1]
    assert apart == pytest.approx(SLOPES - SLOPES[:1], abs=1e-3)


def test_t10_slopes_from_noisy_samples():
    r = plan_swarm(np.array([0.5, 0.5]), 40, seed=2)
    noise = 0.005 * np.random.default_rng(3).normal(size=(40, 2))
    truth = np.c_[2 + np.exp(-2 * r[:, 0]), 1 + 1.5 * np.exp(-3 * r[:, 1])]
    slope = log_linear.fit(r, truth + noise).slope
    assert slope[0] - slope[1] == pytest.approx([-2, 3], abs=0.25)


def test_a_metric_that_is_better_when_higher():
    accuracy = 0.9 - 0.5 * np.exp(MIXES @ SLOPES)
    fitted = log_linear.fit(MIXES, accuracy)
    assert (fitted.sign == -1).all()
    assert fitted.offset == pytest.approx([0.9] * 3, abs=1e-3)


@pytest.mark.parametrize("name", FITS)
def test_runs_that_were_not_seen_are_predicted(name):
    fitted = FITS[name](MIXES[:48], law(MIXES[:48]))
    least = {"log_linear": 0.9999, "gaussian": 0.9, "boosting": 0.3}[name]
    assert (explained(law(MIXES[48:]), fitted.predict(MIXES[48:])) > least).all()


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_those_of_predictions(name):
    fitted = FITS[name](MIXES, law(MIXES))
    for mix in MIXES[[0, 1, 30]] * 0.96 + 0.01:
        slope = fitted.gradient(mix)
        assert slope.shape == (3, K)
        for k in range(K):
            step = 1e-6 * np.eye(K)[k]
            there = fitted.predict(np.stack([mix + step, mix - step]))
            assert slope[:, k] == pytest.approx((there[0] - there[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_the_gradient_of_the_evidence():
    rng = np.random.default_rng(4)
    features, targets = np.sqrt(MIXES[:20]) / 0.2, rng.normal(size=(20, 3))
    theta = np.array([-2.0, -1.0, -3.0, -1.5, -3.0])
    _, slope = gaussian._evidence(theta, features, targets)
    for i in range(len(theta)):
        step = 1e-5 * np.eye(len(theta))[i]
        high = gaussian._evidence(theta + step, features, targets)[0]
        low = gaussian._evidence(theta - step, features, targets)[0]
        assert slope[i] == pytest.approx((high - low) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize(("scale", "shift"), [(1e6, 0.0), (1e-6, 0.0), (-1.0, 0.7), (1.0, 1e4)])
def test_scales_and_signs_of_metrics_do_not_matter(name, scale, shift):
    plain = FITS[name](MIXES, law(MIXES)).predict(MIXES)
    other = FITS[name](MIXES, scale * law(MIXES) + shift).predict(MIXES)
    assert (other - shift) / scale == pytest.approx(plain, abs=2e-3)


@pytest.mark.parametrize("name", FITS)
def test_hostile_swarms(name):
    rng = np.random.default_rng(5)
    for n, k in ((10, 2), (10, 17), (12, 60)):
        mixes = rng.dirichlet(np.full(k, 0.2), n)
        mixes[:, 0] = 0.0  # a column that never varies
        mixes /= mixes.sum(axis=1, keepdims=True)
        mixes[3] = mixes[4]
        losses = np.c_[rng.normal(size=n), np.full(n, 2.5), np.zeros(n)]
        fitted = FITS[name](mixes, losses)
        found = fitted.predict(np.vstack([mixes, np.full((1, k), 1 / k), np.eye(k)]))
        assert np.isfinite(found).all()
        assert found[:n, 1:] == pytest.approx(losses[:, 1:], abs=1e-6)
        assert np.abs(found[:, 0]).max() < 100
        again = fitted.refit(mixes[: n - 2], losses[: n - 2]).predict(mixes)
        assert np.isfinite(again).all()


@pytest.mark.parametrize("name", FITS)
def test_a_refit_to_the_same_runs_is_the_fit(name):
    fitted = FITS[name](MIXES, law(MIXES))
    again = fitted.refit(MIXES, law(MIXES))
    assert again.predict(MIXES) == pytest.approx(fitted.predict(MIXES), abs=1e-5)
