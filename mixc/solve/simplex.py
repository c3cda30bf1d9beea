"""Arithmetic on the simplex: caps, divergences, and the minimum of a smooth function on it.

All weights are float64[K], not negative, of sum 1. A cap is float64[K], the most that each weight
may be; caps sum to 1 at least.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mixc.build.counts import water_fill
from mixc.errors import MixcError

Weights = NDArray[np.float64]
# The value of a function at a point, and its gradient there, float64[K].
Smooth = Callable[[Weights], tuple[float, Weights]]

_STILL = 10  # steps that lower nothing, after which descent ends
_TINY = 1e-300


def repetition_cap(
    tokens: NDArray[np.int64], target_tokens: int | None, max_epochs: float | None
) -> Weights:
    """The most that each weight may be for `max_epochs` passes in `target_tokens`, float64[K].

    A domain without tokens may have none. Raises MX060 if all the domains together, repeated as
    often as they may be, hold less than the target.
    """
    room = np.where(tokens > 0, 1.0, 0.0)
    if max_epochs is not None and target_tokens:
        room = np.minimum(room, max_epochs * tokens / target_tokens)
    if room.sum() < 1 - 1e-9:
        raise MixcError(
            "MX060",
            f"the mixture wants {target_tokens} tokens, more than {max_epochs:g} epochs of all"
            " domains hold",
            help="ask for fewer tokens, or raise mixture.max_epochs",
        )
    return np.minimum(1.0, room / min(1.0, float(room.sum())))


def project(shares: Weights, cap: Weights | None = None) -> Weights:
    """The weights under the cap that are nearest to `shares` in KL divergence.

    Shares need not sum to 1. What a full domain cannot take is spread over the others in proportion
    to their shares; where all that have a share are full, over the rest in proportion to its room.
    """
    if cap is None:
        return np.asarray(shares / shares.sum(), np.float64)
    named = np.where(shares > 0, cap, 0.0)
    if (short := 1 - float(named.sum())) > 0:
        rest = cap - named
        return np.asarray(named + rest * (short / max(float(rest.sum()), _TINY)), np.float64)
    return water_fill(np.asarray(shares, np.float64), cap, 1.0)


def kl_divergence(p: Weights, q: Weights) -> float:
    """KL(p || q) in nats; infinite where p has a weight and q has none."""
    held = p > 0
    with np.errstate(divide="ignore"):
        return float((p[held] * np.log(p[held] / q[held])).sum())


def exponentiated_step(
    weights: Weights,
    gradient: Weights,
    eta: float,
    *,
    natural: Weights | None = None,
    kl: float = 0.0,
    cap: Weights | None = None,
) -> Weights:
    """argmin of <gradient, p> + kl KL(p || natural) + KL(p || weights) / eta, under the cap.

    Without the KL term this is exponentiated gradient (Kivinen and Warmuth, 1997). The minimum is
    a geometric mean of `weights` and `natural`, tilted by the gradient, then water-filled. A weight
    at 0 stays there.
    """
    pull = eta * kl
    with np.errstate(divide="ignore"):
        logs = np.log(weights) - eta * gradient
        if pull and natural is not None:
            logs = (logs + pull * np.log(natural)) / (1 + pull)
    return project(np.exp(logs - logs.max()), cap)


def minimise(
    function: Smooth,
    start: Weights,
    *,
    natural: Weights | None = None,
    kl: float = 0.0,
    cap: Weights | None = None,
    steps: int = 5000,
) -> tuple[Weights, float]:
    """A local minimum of function(p) + kl KL(p || natural) under the cap, and its value there.

    Exponentiated gradient from `start`, which should have no weight 0, with a step size that grows
    while it descends and is halved where it does not. It ends where weights move no more, for
    convex functions within 1e-6 of the minimum, or after so many steps.
    """

    def penalty(p: Weights) -> float:
        return kl * kl_divergence(p, natural) if kl and natural is not None else 0.0

    here = project(start, cap)
    value, gradient = function(here)
    value += penalty(here)
    eta, still = 1.0 / max(float(np.ptp(gradient)), 1e-12), 0
    for _ in range(steps):
        there = exponentiated_step(here, gradient, eta, natural=natural, kl=kl, cap=cap)
        moved = float(np.abs(there - here).max())
        if moved < 1e-13:
            break
        new, slope = function(there)
        new += penalty(there)
        if new <= value:
            still = still + 1 if value - new <= 1e-15 * max(1.0, abs(value)) else 0
            here, value, gradient, eta = there, new, slope, eta * 1.5
            if still == _STILL:
                break
        else:
            eta /= 2
    return here, value
