"""The mix at which a fitted surface is lowest, near to the natural mix and under caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixc.rng import Stream
from mixc.solve.simplex import kl_divergence, minimise, project
from mixc.solve.swarm import plan_swarm

Real = NDArray[np.float64]
# What to lower: a weight for each metric, float64[m], or a function of metrics [n, m] to [n].
Objective = Real | Callable[[Real], Real]

_SIMULATED = 2048
_TOP = 64  # the best of the simulated, whose mean is taken (RegMix takes 100 of 10^6)
_STARTS = 4
_ROUGH, _FINE = 100, 5000  # steps from each start, and of the best to the end
_ROUNDS, _ROUGH_ROUNDS, _ROUND_DRAWS, _ROUND_TOP = 24, 10, 256, 16
_ALIVE = 1e-3  # of the natural mix in every start: exponentiated gradient never leaves 0


class Predicts(Protocol):
    """A surface."""

    @property
    def smooth(self) -> bool:
        """Whether it has a gradient."""

    def predict(self, ratios: Real) -> Real:
        """The metrics of mixes [n, k], float64[n, m]."""

    def gradient(self, ratios: Real) -> Real:
        """Derivatives of each metric in a mix [k], float64[m, k]."""


def lowest(
    surface: Predicts,
    objective: Objective,
    *,
    natural: Real,
    kl: float = 0.0,
    cap: Real | None = None,
    start: Real | None = None,
    seed: int = 0,
) -> Real:
    """The mix that minimises objective + kl KL(mix || natural) under the cap, float64[k].

    Weighted metrics of a smooth surface are descended by exponentiated gradient from several
    starts, and the best goes on to its end. Else the mean of the best of many simulated mixes is
    refined: what lies around it is drawn, nearer each round, and the mean of the best taken again.
    With `start`, either goes from there alone, and roughly: resampling asks for many minima. A
    domain that the natural mix does not have gets nothing. A pull without end leaves the natural
    mix, as far as the cap lets it.
    """
    most = np.where(natural > 0, 1.0 if cap is None else cap, 0.0)
    natural = natural / natural.sum()
    if kl == np.inf:
        return project(natural, most)

    def values(mixes: Real) -> Real:
        metrics = surface.predict(mixes)
        found = metrics @ objective if isinstance(objective, np.ndarray) else objective(metrics)
        if not kl:
            return np.asarray(found, np.float64)
        return np.asarray(found + kl * np.array([kl_divergence(p, natural) for p in mixes]))

    if start is None:
        mixes = plan_swarm(natural, _SIMULATED, seed=seed, max_ratio=most)
        best = mixes[np.argsort(values(mixes), kind="stable")[:_TOP]]
        starts = np.vstack([best.mean(axis=0), best[:_STARTS], mixes[:2]])
    else:
        starts = start[None]
    if isinstance(objective, np.ndarray) and surface.smooth:
        rough = _descend(surface, objective, starts, natural, kl, most, steps=_ROUGH)
        if start is not None:
            return rough
        return _descend(surface, objective, rough[None], natural, kl, most, steps=_FINE)
    return _refine(values, starts, most, seed, _ROUNDS if start is None else _ROUGH_ROUNDS)


def _descend(
    surface: Predicts,
    objective: Real,
    starts: Real,
    natural: Real,
    kl: float,
    cap: Real,
    *,
    steps: int,
) -> Real:
    def function(p: Real) -> tuple[float, Real]:
        return float((surface.predict(p[None]) @ objective)[0]), objective @ surface.gradient(p)

    found = [
        minimise(
            function,
            (1 - _ALIVE) * start + _ALIVE * natural,
            natural=natural,
            kl=kl,
            cap=cap,
            steps=steps,
        )
        for start in starts
    ]
    return min(found, key=lambda one: one[1])[0]


def _refine(
    values: Callable[[Real], Real], starts: Real, cap: Real, seed: int, rounds: int
) -> Real:
    here = starts[int(values(starts).argmin())]
    center = starts[0]
    for number in range(rounds):
        stream = Stream(seed, "refine", epoch=number)
        noise = stream.normals(_ROUND_DRAWS * len(cap)).reshape(_ROUND_DRAWS, -1)
        drawn = center * np.exp(0.8**number * noise)
        drawn /= drawn.sum(axis=1, keepdims=True)
        for row in np.flatnonzero((drawn > cap).any(axis=1)):
            drawn[row] = project(drawn[row], cap)
        best = drawn[np.argsort(values(drawn), kind="stable")[:_ROUND_TOP]]
        center = project(best.mean(axis=0), cap)
        pair = np.stack([here, center])
        here = pair[int(values(pair).argmin())]
    return np.asarray(here, np.float64)
