"""Gradient boosting of trees over mixes, as RegMix has it (arXiv:2407.01492, section 3.2).

Its histograms of splits make steps, so it has no gradient: see `mixc.solve.lowest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]

_TREES = 60
_RATE = 0.15
_LEAVES = 8
_LEAF_RUNS = 5
FEWEST = 2 * _LEAF_RUNS  # of fewer runs it makes no split


@dataclass(frozen=True)
class Boosting:
    """A booster for each of m metrics."""

    boosters: tuple[Any, ...]

    def predict(self, ratios: Real) -> Real:
        """The metrics of mixes [n, k], float64[n, m]."""
        return np.stack([one.predict(ratios) for one in self.boosters], axis=1)

    def refit(self, ratios: Real, losses: Real) -> Boosting:
        """Boosters of other runs of the swarm."""
        return fit(ratios, losses)


def fit(ratios: Real, losses: Real) -> Boosting:
    """Fit boosters to metrics [n, m] of mixes [n, k]. Nothing in it is random."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    options = {
        "max_iter": _TREES,
        "learning_rate": _RATE,
        "max_leaf_nodes": _LEAVES,
        "min_samples_leaf": _LEAF_RUNS,
        "early_stopping": False,
    }
    return Boosting(
        tuple(HistGradientBoostingRegressor(**options).fit(ratios, one) for one in losses.T)
    )
