"""Metrics on a common scale: losses, accuracies and bits per byte are fitted alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]


def mean_and_scale(losses: Real) -> tuple[Real, Real]:
    """Mean and standard deviation of metrics [n, m]; 1 for a metric that is constant."""
    mean, scale = losses.mean(axis=0), losses.std(axis=0)
    return mean, np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)
