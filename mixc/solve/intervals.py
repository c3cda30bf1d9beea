"""How sure a weight is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixc.rng import Stream

_DRAWS = 1000
_LEVEL = 0.95


def block_bootstrap(
    trajectory: NDArray[np.float64], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A 95% interval of the mean of a trajectory [T, K] over its steps: low and high, [K].

    Circular block bootstrap (Politis and Romano, 1992) with blocks of about sqrt(T) steps, since
    neighbouring steps are alike. It sees the noise of batches, not of initialisation or data
    order: one run cannot, so read it as a lower bound on the doubt.
    """
    steps = len(trajectory)
    length = max(1, round(steps**0.5))
    blocks = -(-steps // length)
    starts = Stream(seed, "bootstrap").uniforms(_DRAWS * blocks).reshape(_DRAWS, blocks) * steps
    # Means of all circular blocks once; a draw is then a mean of `blocks` of them.
    around = np.concatenate([trajectory, trajectory[: length - 1]])
    sums = np.cumsum(np.concatenate([np.zeros((1, trajectory.shape[1])), around]), axis=0)
    means = (sums[length:] - sums[:-length]) / length
    draws = means[starts.astype(np.int64)].mean(axis=1)
    tail = (1 - _LEVEL) / 2
    return np.quantile(draws, tail, axis=0), np.quantile(draws, 1 - tail, axis=0)
