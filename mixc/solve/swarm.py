"""Mixes to train small models on: Dirichlet around the natural mix, as RegMix draws them.

Liu et al., RegMix (arXiv:2407.01492, section 3.1): the natural mix is flattened, and each mix drawn
with a strength of its own, from nearly one domain alone to nearly the flattened mix itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError
from mixc.rng import Stream
from mixc.solve.simplex import project

Real = NDArray[np.float64]

RUNS_PER_DOMAIN = 3  # runs for each unknown of a log-linear law, as Olmix advises


def default_runs(k: int) -> int:
    """Runs that k domains ask for: three for each unknown."""
    return RUNS_PER_DOMAIN * (k + 1)


def plan_swarm(
    natural: Real,
    runs: int | None = None,
    *,
    seed: int = 0,
    max_ratio: Real | None = None,
    temperature: float = 0.5,
    strength: tuple[float, float] | None = None,
    minimum: float = 0.0,
    order: NDArray[np.int64] | None = None,
) -> Real:
    """Mixes of a swarm, float64[runs, k]: natural, uniform, then draws.

    A draw is Dirichlet(s q), q the natural mix to the power `temperature`, normalised; s goes in
    equal ratios through `strength`, by default from 0.5 to k, or 5 where that is more. Every
    mix is brought under `max_ratio`, and no domain that the natural mix has falls below `minimum`
    (where the caps let it). Domains of no tokens have no weight. The draws belong to the natural
    weights, not to places: domains that trade places trade columns. Of equal weights, those come
    first that do in `order`, the places int64[k] in some order.

    Raises MX007 for fewer than 3 runs, or a minimum that is too high for k domains.
    """
    live = natural > 0
    k = int(live.sum())
    count = default_runs(k) if runs is None else runs
    if count < 3:
        raise MixcError("MX007", f"a swarm has 3 runs at least, not {count}")
    if not 0 <= minimum * k < 1:
        message = f"{k} domains cannot all have {minimum:.3g} of a mix"
        raise MixcError("MX007", message, help="lower it")
    cap = np.where(live, 1.0 if max_ratio is None else max_ratio, 0.0)
    lowest, highest = (0.5, max(5.0, float(k))) if strength is None else strength
    flat = np.power(natural[live] / natural.sum(), temperature)
    strengths = np.geomspace(lowest, highest, max(count - 2, 1))
    rank = np.arange(len(natural)) if order is None else np.argsort(order)
    order = np.lexsort((rank[live], cap[live], natural[live]))
    shares = np.zeros((count, len(natural)))
    shares[0], shares[1] = natural, live
    places = np.flatnonzero(live)[order]
    alpha = strengths[:, None] * (flat[order] / flat.sum())
    shares[2:, places] = dirichlet(alpha[: count - 2], Stream(seed, "swarm"))
    return np.stack([_within(one, np.where(live, minimum, 0.0), cap) for one in shares])


def dirichlet(alpha: Real, stream: Stream) -> Real:
    """A draw of Dirichlet(alpha) for each row of alpha [n, k], float64[n, k].

    Gamma(a) is Gamma(a + 1) U^(1/a) (Marsaglia and Tsang, 2000), the former by the inverse of its
    distribution, in logarithms: for small a nearly all draws are below the least float.
    """
    from scipy.special import gammaincinv

    u = stream.uniforms(2 * alpha.size).reshape(2, *alpha.shape)
    u = np.maximum(u, 2.0**-54)
    logs = np.log(gammaincinv(alpha + 1, u[0])) + np.log(u[1]) / alpha
    drawn = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(drawn / drawn.sum(axis=1, keepdims=True), np.float64)


def _within(shares: Real, minimum: Real, cap: Real) -> Real:
    """The nearest weights between a minimum and a cap."""
    floor = np.minimum(minimum, cap)
    room = 1 - float(floor.sum())
    return np.asarray(floor + room * project(shares, (cap - floor) / room), np.float64)
