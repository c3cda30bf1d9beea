"""Log-linear surfaces: loss = c + exp(b + t . r), as in data mixing laws and Olmix.

Ye et al., "Data Mixing Laws" (arXiv:2403.16952, equation 1). A metric that is better when it is
higher may bend the other way: c - exp(b + t . r) is fitted too, and kept where it predicts better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.solve.scaling import mean_and_scale

Real = NDArray[np.float64]

_OFFSETS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of c from the metric's range, in ranges
_RIDGES = 10.0 ** np.arange(-8.0, 4.0)  # on t, relative to the design's own scale
_STEPS = 50
_STARTS, _ROUNDS = 3, 5
_STEEPEST = 30.0  # the most that an exponent may be while fitting
_BEYOND = np.log(3.0)  # by how much an exponent may go beyond those of the runs: heights threefold


@dataclass(frozen=True)
class LogLinear:
    """The surfaces of m metrics: offset + sign exp(min(bias + (r - centre) . slope, ceiling)).

    offset, sign, bias, ridge and ceiling are float64[m], slope is float64[k, m], centre
    float64[k]. The ceiling keeps predictions sane where few runs say little.
    """

    offset: Real
    sign: Real
    bias: Real
    slope: Real
    centre: Real
    ridge: Real
    ceiling: Real

    def predict(self, ratios: Real) -> Real:
        """The metrics of mixes [n, k], float64[n, m]."""
        exponent = np.minimum(self._exponent(ratios), self.ceiling)
        return np.asarray(self.offset + self.sign * np.exp(exponent), np.float64)

    def gradient(self, ratios: Real) -> Real:
        """Derivatives of each metric in a mix [k], float64[m, k]."""
        exponent = self._exponent(ratios[None])[0]
        height = np.where(exponent < self.ceiling, np.exp(np.minimum(exponent, self.ceiling)), 0.0)
        return np.asarray((self.sign * height * self.slope).T, np.float64)

    def refit(self, ratios: Real, losses: Real) -> LogLinear:
        """The same kind of surfaces, of other runs of the swarm; ridge and sign stay."""
        return _joined(
            [
                _descend(ratios, losses[:, j], self._of(j), float(self.ridge[j]))
                for j in range(losses.shape[1])
            ]
        )

    def _exponent(self, ratios: Real) -> Real:
        return np.asarray((ratios - self.centre) @ self.slope + self.bias, np.float64)

    def _of(self, j: int) -> LogLinear:
        cut = slice(j, j + 1)
        return LogLinear(
            self.offset[cut],
            self.sign[cut],
            self.bias[cut],
            self.slope[:, cut],
            self.centre,
            self.ridge[cut],
            self.ceiling[cut],
        )


def fit(ratios: Real, losses: Real) -> LogLinear:
    """Fit surfaces to metrics [n, m] of mixes [n, k], each by itself, on any scale.

    For a grid of c the rest is a ridge regression of log(loss - c), each run weighted by the square
    of loss - c, so that errors count as they do in the loss. What predicts runs left out best
    (leave-one-out in closed form) is the start of Gauss-Newton on the loss itself.
    """
    mean, scale = mean_and_scale(losses)
    found = [_fit_one(ratios, one) for one in ((losses - mean) / scale).T]
    joined = _joined(found)
    return LogLinear(
        mean + scale * joined.offset,
        joined.sign,
        joined.bias + np.log(scale),
        joined.slope,
        joined.centre,
        joined.ridge * scale**2,
        joined.ceiling + np.log(scale),
    )


def _fit_one(ratios: Real, y: Real) -> LogLinear:
    low, high = float(y.min()), float(y.max())
    spread = max(high - low, 1e-12)
    starts = [
        _regress(ratios, y, low - offset * spread if sign > 0 else high + offset * spread, sign)
        for sign in (1.0, -1.0)
        for offset in _OFFSETS
    ]
    best = sorted(starts, key=lambda one: one[0])[:_STARTS]
    return min((_settle(ratios, y, start) for start in best), key=lambda one: one[0])[1]


def _settle(
    ratios: Real, y: Real, start: tuple[float, LogLinear, float]
) -> tuple[float, LogLinear]:
    """Descend from a start, and again with another ridge while that predicts better."""
    best, law, ridge = start
    found = _descend(ratios, y, law, ridge)
    for _ in range(_ROUNDS):  # at a better c, less ridge may do
        score, law, ridge = _regress(ratios, y, float(found.offset[0]), float(found.sign[0]))
        if score >= best:
            break
        best, found = score, _descend(ratios, y, law, ridge)
    return best, found


def _regress(ratios: Real, y: Real, c: float, sign: float) -> tuple[float, LogLinear, float]:
    """The best ridge regression of log(sign (y - c)): its error of runs left out, and its ridge."""
    height = np.maximum(sign * (y - c), 1e-9)
    share = height**2 / (height**2).sum()
    target, centre = np.log(height), share @ ratios
    middle = share @ target
    root = height[:, None]
    u, d, vt = np.linalg.svd(root * (ratios - centre), full_matrices=False)
    along = u.T @ (height * (target - middle))
    scale = max(float((d**2).sum()) / ratios.shape[1], 1e-12)
    best: tuple[float, LogLinear, float] | None = None
    for ridge in _RIDGES * scale:
        keep = d**2 / (d**2 + ridge)
        left_out = (u**2) @ keep + share
        error = (target - middle) - u @ (keep * along) / height
        error = np.clip(error / np.maximum(1 - left_out, 1e-3), -_STEEPEST, _STEEPEST)
        score = float(np.mean((height * np.expm1(-error)) ** 2))
        if best is None or score < best[0]:
            slope = vt.T @ (d / (d**2 + ridge) * along)
            best = score, _single(c, sign, middle, slope, centre, ridge), float(ridge)
    assert best is not None
    return best


def _descend(ratios: Real, y: Real, start: LogLinear, ridge: float) -> LogLinear:
    """Levenberg-Marquardt on sum (y - loss)^2 + ridge |t|^2 over c, b and t."""
    x = ratios - start.centre
    sign, theta = float(start.sign[0]), np.r_[start.offset, start.bias, start.slope[:, 0]]
    decay = np.r_[0.0, 0.0, np.full(x.shape[1], ridge)]

    def parts(theta: Real) -> tuple[float, Real, Real]:
        height = sign * np.exp(np.minimum(theta[1] + x @ theta[2:], _STEEPEST))
        error = y - theta[0] - height
        jacobian = np.c_[np.ones(len(y)), height, height[:, None] * x]
        return float(error @ error + decay @ theta**2), error, jacobian

    value, error, jacobian = parts(theta)
    damping = 1e-3
    for _ in range(_STEPS):
        normal = jacobian.T @ jacobian + np.diag(decay)
        damped = normal + damping * np.diag(np.diag(normal) + 1e-12)
        step = np.linalg.lstsq(damped, jacobian.T @ error - decay * theta, rcond=1e-14)[0]
        new, new_error, new_jacobian = parts(theta + step)
        if new < value:
            settled = value - new <= 1e-8 * max(value, 1e-12)
            theta, value, error, jacobian = theta + step, new, new_error, new_jacobian
            damping = max(damping / 5, 1e-12)
            if settled:
                break
        elif damping > 1e8:
            break
        else:
            damping *= 4
    highest = float((theta[1] + x @ theta[2:]).max())
    return _single(
        theta[0], sign, theta[1], theta[2:], start.centre, ridge, highest + float(_BEYOND)
    )


def _single(
    c: float,
    sign: float,
    bias: float,
    slope: Real,
    centre: Real,
    ridge: float,
    ceiling: float = _STEEPEST,
) -> LogLinear:
    one = [np.array([float(value)]) for value in (c, sign, bias, ridge, ceiling)]
    return LogLinear(one[0], one[1], one[2], slope[:, None], centre, one[3], one[4])


def _joined(single: list[LogLinear]) -> LogLinear:
    """Surfaces of one metric each as one; centres, which differ, are moved to 0."""
    bias = [one.bias - one.centre @ one.slope for one in single]
    return LogLinear(
        np.concatenate([one.offset for one in single]),
        np.concatenate([one.sign for one in single]),
        np.concatenate(bias),
        np.concatenate([one.slope for one in single], axis=1),
        np.zeros(single[0].slope.shape[0]),
        np.concatenate([one.ridge for one in single]),
        np.concatenate([one.ceiling for one in single]),
    )
