"""How far a swarm can be trusted: what fits to parts of its runs come to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixc.rng import Stream
from mixc.solve.blas import one_thread
from mixc.solve.lowest import Objective
from mixc.solve.surfaces import Surface

Real = NDArray[np.float64]

# Strengths of the pull to the natural mix that are tried, in spreads of the objective over runs.
_STRENGTHS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_HALVINGS = 4
_LEVEL = 0.95


@dataclass(frozen=True)
class Aim:
    """What is sought: the lowest objective near to `natural` float64[k], at most `cap`."""

    objective: Objective
    natural: Real
    cap: Real

    def values(self, metrics: Real) -> Real:
        """The objective of metrics [n, m], float64[n]."""
        if isinstance(self.objective, np.ndarray):
            return np.asarray(metrics @ self.objective, np.float64)
        return np.asarray(self.objective(metrics), np.float64)


@one_thread()
def choose_kl(
    surface: Surface, ratios: Real, losses: Real, aim: Aim, *, seed: int
) -> tuple[float, Real]:
    """How strong the pull to the natural mix should be, in units of the objective.

    The runs are halved several times. A mix that is best by one half is judged by a fit to the
    other, which knows nothing of the chance that made it look best: few runs say little about mixes
    far from the simple one. Returns the strength that does best in the mean, and those that do best
    in each half, float64[halves]; the greatest, where runs tell none apart. Where runs left out of
    fits are predicted no better than by their mean, nothing is known, and the pull has no end.
    """
    truth = aim.values(losses)
    blind = ((aim.values(surface.left_out) - truth) ** 2).mean() >= truth.var()
    surface = surface.without_trees()
    unit = float(truth.std()) or 1.0
    strengths = unit * np.array(_STRENGTHS[::-1])  # of equals, the first is taken
    judged = []
    for number in range(_HALVINGS):
        order = Stream(seed, "halves", epoch=number).permutation(len(ratios))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        fits = [surface.refit(ratios[half], losses[half]) for half in halves]
        for mine, other in (fits, fits[::-1]):
            mixes = [
                mine.minimise(
                    aim.objective,
                    natural=aim.natural,
                    kl=kl,
                    cap=aim.cap,
                    start=aim.natural,
                    seed=seed,
                )
                for kl in strengths
            ]
            judged.append(aim.values(other.predict(np.stack(mixes))))
    values = np.stack(judged)
    best = np.inf if blind else float(strengths[values.mean(axis=0).argmin()])
    return best, strengths[values.argmin(axis=1)]


@one_thread()
def run_bootstrap(
    surface: Surface,
    ratios: Real,
    losses: Real,
    aim: Aim,
    *,
    kl: Real,
    start: Real,
    draws: int,
    seed: int,
) -> Real:
    """The mixes that resampled runs lead to, float64[draws, k].

    Each draw fits smooth surfaces to n of the n runs, drawn with replacement, and descends from
    `start`. Which family is right is as unsure as the rest: the surface and each of its members
    alone take turns, and so do the pulls `kl` float64[p].
    """
    readings = surface.readings()
    found = np.empty((draws, len(start)))
    for draw in range(draws):
        uniforms = Stream(seed, "resample", epoch=draw).uniforms(len(ratios))
        rows = np.sort((uniforms * len(ratios)).astype(np.int64))
        turn, which = divmod(draw, len(readings))
        fitted = readings[which].refit(ratios[rows], losses[rows])
        found[draw] = fitted.minimise(
            aim.objective,
            natural=aim.natural,
            kl=float(kl[turn % len(kl)]),
            cap=aim.cap,
            start=start,
            seed=seed,
        )
    return found


def interval(mixes: Real, weights: Real) -> tuple[Real, Real]:
    """A 95% interval of each weight by the spread of `mixes` [draws, K]; it holds `weights` [K]."""
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(mixes, [tail, 1 - tail], axis=0)
    return np.minimum(low, weights), np.maximum(high, weights)
