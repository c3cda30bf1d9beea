"""Gaussian processes over mixes: smooth surfaces that follow the runs as closely as noise allows.

Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2 and 5. A mix is
seen by the square roots of its ratios, whose distance is Hellinger's: between 0 and 1 percent of a
domain lies as much as between 25 and 36, as losses have it, and a ratio of 0 is nothing special.
The kernel is Matern 5/2 with a length of its own for each domain and metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.rng import Stream
from mixc.solve.scaling import mean_and_scale

Real = NDArray[np.float64]

_LEARN_FROM = 192  # runs that lengths and noise are learnt from, at most; all runs are predicted by
_SHARED_STEPS, _OWN_STEPS = 20, 15
_SPREAD = 2.0  # standard deviation of the prior of log lengths and log noise
_NOISE = 1e-2  # its median, relative to the metric's variance
_SMALLEST = 1e-9  # a ratio, in derivatives of square roots


@dataclass(frozen=True)
class Gaussian:
    """Processes of m metrics over n runs.

    `features` float64[n, k]; `weights` float64[m, k], the inverse squared lengths; `noise`
    float64[m]; `alpha` float64[n, m], the solved targets; `mean` and `scale` float64[m] are those
    of the metrics, `unit` the features' own scale.
    """

    features: Real
    weights: Real
    noise: Real
    alpha: Real
    mean: Real
    scale: Real
    unit: float

    def predict(self, ratios: Real) -> Real:
        """The metrics of mixes [n', k], float64[n', m]."""
        there = np.sqrt(ratios) / self.unit
        found = np.empty((len(ratios), len(self.mean)))
        for j, weights in enumerate(self.weights):
            kernel = _matern(_distances(there, self.features, weights))[0]
            found[:, j] = kernel @ self.alpha[:, j]
        return found * self.scale + self.mean

    def gradient(self, ratios: Real) -> Real:
        """Derivatives of each metric in a mix [k], float64[m, k]."""
        root = np.sqrt(np.maximum(ratios, _SMALLEST))
        apart = root / self.unit - self.features
        squared = apart**2 @ self.weights.T
        slope = _matern(squared)[1] * self.alpha
        inner = 2 * (slope.T @ apart) * self.weights
        return np.asarray(inner * self.scale[:, None] / (2 * self.unit * root), np.float64)

    def refit(self, ratios: Real, losses: Real) -> Gaussian:
        """Processes over other runs of the swarm; lengths, noise and scales stay."""
        features = np.sqrt(ratios) / self.unit
        targets = (losses - self.mean) / self.scale
        alpha = _solve(features, targets, self.weights, self.noise)
        return Gaussian(features, self.weights, self.noise, alpha, self.mean, self.scale, self.unit)


def fit(ratios: Real, losses: Real, *, seed: int) -> Gaussian:
    """Fit processes to metrics [n, m] of mixes [n, k].

    Lengths and noise are the most probable ones under a log-normal prior: first shared by all
    metrics, then from there for each. They are learnt from a sample of the runs where there are
    many, as that costs n^3 a step.
    """
    unit = max(float(np.sqrt(ratios).std(axis=0).mean()), 1e-6)
    features = np.sqrt(ratios) / unit
    mean, scale = mean_and_scale(losses)
    targets = (losses - mean) / scale
    some = np.sort(Stream(seed, "lengths").permutation(len(ratios))[:_LEARN_FROM])
    shared = _learn(features[some], targets[some], _prior(features.shape[1]), _SHARED_STEPS)
    theta = np.array(
        [
            _learn(features[some], targets[some, j : j + 1], shared, _OWN_STEPS)
            for j in range(losses.shape[1])
        ]
    )
    weights, noise = np.exp(theta[:, :-1]), np.exp(theta[:, -1])
    alpha = _solve(features, targets, weights, noise)
    return Gaussian(features, weights, noise, alpha, mean, scale, unit)


def _prior(k: int) -> Real:
    """Medians of the log inverse squared lengths and of the log noise, float64[k + 1]."""
    return np.append(np.full(k, -np.log(k) - 1.0), np.log(_NOISE))


def _learn(features: Real, targets: Real, start: Real, steps: int) -> Real:
    from scipy.optimize import minimize

    prior = _prior(features.shape[1])

    def loss(theta: Real) -> tuple[float, Real]:
        value, slope = _evidence(theta, features, targets)
        away = (theta - prior) / _SPREAD
        return value + 0.5 * float(away @ away), slope + away / _SPREAD

    bounds = [(-14.0, 6.0)] * (len(prior) - 1) + [(np.log(1e-6), 0.7)]
    options = {"maxiter": steps}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x, np.float64)


def _evidence(theta: Real, features: Real, targets: Real) -> tuple[float, Real]:
    """Minus the log marginal likelihood of targets [n, m], its amplitudes at their best, and its
    gradient in theta: Rasmussen and Williams, equations 2.30 and 5.9.
    """
    from scipy.linalg import cho_factor, cho_solve

    n, m = targets.shape
    weights, noise = np.exp(theta[:-1]), np.exp(theta[-1])
    kernel, slope = _matern(_distances(features, features, weights))
    factor = cho_factor(kernel + noise * np.eye(n), lower=True, check_finite=False)
    inverse = cho_solve(factor, np.eye(n), check_finite=False)
    alpha = inverse @ targets
    amplitude = np.maximum((targets * alpha).sum(axis=0) / n, 1e-12)
    value = 0.5 * n * float(np.log(amplitude).sum())
    value += m * float(np.log(np.diag(factor[0])).sum())
    outer = 0.5 * (m * inverse - (alpha / amplitude) @ alpha.T)
    # sum_ab P_ab (x_aj - x_bj)^2 for every j at once, P symmetric.
    pairs = outer * slope
    by_domain = 2 * (pairs.sum(axis=1) @ features**2 - (features * (pairs @ features)).sum(axis=0))
    return value, np.r_[weights * by_domain, noise * np.trace(outer)]


def _solve(features: Real, targets: Real, weights: Real, noise: Real) -> Real:
    from scipy.linalg import cho_factor, cho_solve

    alpha = np.empty_like(targets)
    for j in range(targets.shape[1]):
        kernel = _matern(_distances(features, features, weights[j]))[0]
        kernel[np.diag_indices_from(kernel)] += noise[j]
        factor = cho_factor(kernel, lower=True, check_finite=False)
        alpha[:, j] = cho_solve(factor, targets[:, j], check_finite=False)
    return alpha


def _distances(a: Real, b: Real, weights: Real) -> Real:
    """Squared weighted distances of rows, float64[len(a), len(b)]."""
    left, right = a * np.sqrt(weights), b * np.sqrt(weights)
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * left @ right.T, 0.0), np.float64)


def _matern(squared: Real) -> tuple[Real, Real]:
    """The Matern 5/2 kernel of squared distances, and its derivative in them."""
    far = np.sqrt(5 * squared)
    fall = np.exp(-far)
    return (1 + far + far**2 / 3) * fall, -(5 / 6) * (1 + far) * fall
