"""What makes solved weights doubtful, in words, for people to read before they train on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Real = NDArray[np.float64]

_NEARLY_ALL = 0.8  # one domain's weight
_FEW = 0.25  # effective domains, as a share of all: exp of the entropy
_DRIFT = 0.1  # total variation between the halves of a trajectory
_SEEDS_APART = 0.1  # total variation between seeds


def total_variation(a: Real, b: Real) -> float:
    """Half of the sum of absolute differences between two mixes, float64[K]: 0 to 1."""
    return 0.5 * float(np.abs(a - b).sum())


def effective_domains(weights: Real) -> float:
    """The exponential of the weights' entropy: 1 for a single domain, K for a uniform mix."""
    some = weights[weights > 0]
    return float(np.exp(-(some * np.log(some)).sum()))


def spread(solutions: Real) -> float:
    """The largest total-variation distance between two of S solutions, float64[S, K]."""
    pairs = ((a, b) for i, a in enumerate(solutions) for b in solutions[:i])
    return max((total_variation(a, b) for a, b in pairs), default=0.0)


def doubts(
    domains: Sequence[str],
    weights: Real,
    low: Real,
    high: Real,
    natural: Real,
    *,
    trajectory: Real | None = None,
    seeds: Real | None = None,
    epochs: Real | None = None,
    max_epochs: float | None = None,
) -> list[str]:
    """Sentences about weights float64[K] with intervals `low` to `high`, beside `natural` ones.

    `trajectory` [T, K] is what they are the mean of, `seeds` [S, K] the answer of each seed,
    `epochs` [K] how often the mixture would read each domain.
    """
    found = [
        *_concentrated(domains, weights),
        *_drifting(trajectory),
        *_repeated(domains, epochs, max_epochs),
    ]
    if seeds is not None and (apart := spread(seeds)) > _SEEDS_APART:
        found.append(f"seeds disagree: total variation {apart:.2f} between two of them")
    moved = total_variation(weights, natural)
    noise = 0.5 * float((high - low).sum()) / 2  # half widths, as a distance between mixes
    if noise > 0 and noise >= moved:
        found.append(
            f"noise may explain these weights: the intervals are as wide ({noise:.2f}, as total "
            f"variation) as the way from natural ({moved:.2f})"
        )
    return found


def _concentrated(domains: Sequence[str], weights: Real) -> list[str]:
    top = int(weights.argmax())
    if len(weights) > 1 and weights[top] > _NEARLY_ALL:
        return [f"nearly all of the weight is on '{domains[top]}': {weights[top]:.2f}"]
    effective = effective_domains(weights)
    if effective < _FEW * len(weights):
        return [f"the weights make {effective:.1f} effective domains of {len(weights)}"]
    return []


def _drifting(trajectory: Real | None) -> list[str]:
    if trajectory is None or len(trajectory) < 4:
        return []
    middle = len(trajectory) // 2
    moved = total_variation(trajectory[:middle].mean(axis=0), trajectory[middle:].mean(axis=0))
    if moved <= _DRIFT:
        return []
    return [f"the weights had not settled: {moved:.2f} total variation between the run's halves"]


def _repeated(domains: Sequence[str], epochs: Real | None, cap: float | None) -> list[str]:
    if epochs is None or cap is None:
        return []
    over = [i for i in np.argsort(-epochs) if epochs[i] > cap]
    return [
        f"'{domains[i]}' would be read {epochs[i]:.1f} times: the cap of {cap:g} epochs will cut it"
        for i in over
    ]
