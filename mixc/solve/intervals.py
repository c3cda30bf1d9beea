"""How sure a weight is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mixc.rng import Stream

_DRAWS = 1000
_LEVEL = 0.95
_MOST_BLOCKS = 20  # each is an answer to be found anew


def block_bootstrap(
    trajectory: NDArray[np.float64], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A 95% interval of the mean of a trajectory [T, K] over its steps: low and high, [K].

    Circular block bootstrap (Politis and Romano, 1992) with blocks of about sqrt(T) steps, since
    neighbouring steps are alike. It sees the noise of batches, not of initialisation or data
    order: one run cannot, so read it as a lower bound on the doubt. It is for what hovers around a
    level: weights that add up noise without being called back are `block_jackknife`'s.
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


def block_jackknife(
    signal: NDArray[np.float64],
    answer: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A 95% interval of weights that add up what the steps of a run measured: low and high, [K].

    `signal` [T, K] is what each step measured, and `answer` the weights, [K], that it leads to. As
    in a jackknife over blocks of steps (Kunsch, 1989) a block is left out at a time and the answer
    found again; in its place stands the mean of the blocks beside it, so that what changes slowly
    along the run is not taken for noise. With the block's own noise goes half of that of each
    neighbour, a variance of 1 + 1/2 of its own (1 + 1 at the ends), by which squares are divided.
    Logarithms are moved, so that weights stay above 0; a weight of 0 has no width. Blocks share
    neighbours: of Student's degrees of freedom there are half as many as blocks.

    A trajectory of such weights is a sum over the steps: as a mean over steps of what hovers around
    a level it is not to be resampled (`block_bootstrap`), which takes its trend for noise, and the
    noise that early steps leave to all later ones for none. Only the noise of batches is seen, as
    if other weights had not led the model elsewhere.
    """
    from scipy.special import stdtrit

    steps, weights = len(signal), answer(signal)
    blocks = np.array_split(np.arange(steps), min(_MOST_BLOCKS, max(1, round(steps**0.5))))
    means = [signal[block].mean(axis=0) for block in blocks]
    some = weights > 0
    variance = np.zeros(int(some.sum()))
    for number, block in enumerate(blocks):
        beside = means[max(number - 1, 0) : number] + means[number + 1 : number + 2]
        if beside:
            other = signal.copy()
            other[block] = np.mean(beside, axis=0)
            moved = np.log(answer(other)[some] / weights[some])
            variance += moved**2 / (1 + 1 / len(beside))
    factor = np.ones(len(weights))
    student = float(stdtrit(max(1.0, len(blocks) / 2), (1 + _LEVEL) / 2))
    factor[some] = np.exp(student * np.sqrt(variance))
    return weights / factor, np.minimum(weights * factor, 1.0)
