"""The step of exponentiated gradient, in logarithms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


def raised(weights: Real, gain: Real, moving: NDArray[np.bool_]) -> Real:
    """The exponentiated gradient step: weights exp(gain) / Z where `moving`, float64[K].

    What is not moving keeps its weight, and Z is such that what moves keeps, together, the mass
    that it had. Equal gains leave weights exactly as they are; a weight of 0 stays there.
    """
    stepped = weights.copy()
    # Subnormal weights count as 0, so that no factor below can overflow.
    moving = moving & (weights >= np.finfo(np.float64).tiny)
    if moving.any():
        log_weights, gain = np.log(weights[moving]), gain[moving]
        log_z = log_sum_exp(log_weights + (gain - gain.max())) - log_sum_exp(log_weights)
        stepped[moving] *= np.exp(gain - gain.max() - log_z)
    return stepped


def log_sum_exp(x: Real) -> float:
    """log(sum(exp(x))) of x [n], n >= 1, without overflow."""
    top = float(x.max())
    return top + float(np.log(np.exp(x - top).sum()))
