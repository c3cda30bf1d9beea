"""Surfaces: metrics of a model as functions of the mix that it is trained on, fitted to runs.

Three families are fitted to every metric. Which of them is believed, or how much of each, is
decided by cross-validation, metric by metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError
from mixc.rng import Stream
from mixc.solve import boosting, gaussian, log_linear
from mixc.solve.blas import one_thread
from mixc.solve.lowest import Objective, lowest
from mixc.solve.scaling import mean_and_scale

Real = NDArray[np.float64]
Index = NDArray[np.int64]

# From simple to wild.
MEMBERS = ("log_linear", "gaussian", "boosting")
FAMILIES = (*MEMBERS, "ensemble")
_LEAST_SHARE = 0.05  # of a member in an ensemble
_AS_GOOD = 1.1  # times the least squared error
_FOLDS = 5
_FEWEST = 3  # different mixes


class Member(Protocol):
    """A family's surfaces of m metrics. Those that are smooth have a `gradient` as well."""

    def predict(self, ratios: Real) -> Real:
        """The metrics of mixes [n, k], float64[n, m]."""

    def refit(self, ratios: Real, losses: Real) -> Any:
        """The same surfaces of other runs: what was learnt of their shape stays."""


@dataclass(frozen=True)
class Score:
    """How well runs left out are predicted, by metric: float64[m], NaN where all runs are equal.

    `spearman` is the correlation of ranks, `r2` the share of variance explained.
    """

    spearman: Real
    r2: Real


@dataclass(frozen=True)
class Surface:
    """The surfaces of m metrics over mixes of k domains.

    `shares` float64[F, m] says how much of each member makes up each metric; `chosen` names the
    family of each; `scores` are those of every family that was tried. `order` int64[k] is the order
    of columns that members see: one that follows from the runs alone, so that the names and places
    of domains change nothing. `left_out` float64[n, m] is what was predicted of each run by a fit
    without it.
    """

    members: tuple[Member, ...]
    shares: Real
    chosen: tuple[str, ...]
    scores: Mapping[str, Score]
    order: Index
    left_out: Real

    def predict(self, ratios: Real) -> Real:
        """The metrics of mixes [n, k], float64[n, m]."""
        seen = ratios[:, self.order]
        found = np.zeros((len(ratios), self.shares.shape[1]))
        for member, share in zip(self.members, self.shares, strict=True):
            if share.any():
                found += share * member.predict(seen)
        return found

    @property
    def smooth(self) -> bool:
        """Whether it has a gradient."""
        pairs = zip(self.members, self.shares, strict=True)
        return all(hasattr(member, "gradient") for member, share in pairs if share.any())

    def gradient(self, ratios: Real) -> Real:
        """Derivatives of each metric in a mix [k], float64[m, k]. Only if it is smooth."""
        slope = np.zeros((self.shares.shape[1], len(ratios)))
        for member, share in zip(self.members, self.shares, strict=True):
            if not share.any():
                continue
            smooth: Any = member
            slope[:, self.order] += share[:, None] * smooth.gradient(ratios[self.order])
        return slope

    def refit(self, ratios: Real, losses: Real) -> Surface:
        """The same surfaces, fitted to other runs: what cross-validation chose stays."""
        seen = ratios[:, self.order]
        return replace(self, members=tuple(one.refit(seen, losses) for one in self.members))

    def minimise(
        self,
        objective: Objective,
        *,
        natural: Real,
        kl: float = 0.0,
        cap: Real | None = None,
        start: Real | None = None,
        seed: int = 0,
    ) -> Real:
        """The mix that is lowest under `objective` and the KL term, float64[k]: see `lowest`."""
        seen = replace(self, order=np.arange(len(self.order)))
        found = np.empty(len(self.order))
        found[self.order] = lowest(
            seen,
            objective,
            natural=natural[self.order],
            kl=kl,
            cap=None if cap is None else cap[self.order],
            start=None if start is None else start[self.order],
            seed=seed,
        )
        return found

    def without_trees(self) -> Surface:
        """Its smooth part, shares scaled up; a metric of trees alone is the last smooth member's.

        Itself where no member is smooth.
        """
        keep = [i for i, member in enumerate(self.members) if hasattr(member, "gradient")]
        if not keep:
            return self
        shares = self.shares[keep]
        shares[-1, shares.sum(axis=0) == 0] = 1.0
        members = tuple(self.members[i] for i in keep)
        return replace(self, members=members, shares=shares / shares.sum(axis=0))

    def readings(self) -> tuple[Surface, ...]:
        """Its smooth part, and where that is of several members, each of them alone."""
        smooth = self.without_trees()
        if len(smooth.members) == 1:
            return (smooth,)
        ones = np.ones((1, smooth.shares.shape[1]))
        alone = (
            replace(smooth, members=(member,), shares=ones)
            for member, share in zip(smooth.members, smooth.shares, strict=True)
            if share.any()
        )
        return (smooth, *alone)


@one_thread()
def fit_surface(ratios: Real, losses: Real, *, family: str = "auto", seed: int = 0) -> Surface:
    """Fit surfaces to the metrics [n, m] of runs on mixes [n, k].

    `family` is one of FAMILIES, or "auto": for each metric the simplest whose squared error on runs
    left out is within a tenth of the least. An ensemble is the convex mixture of members that
    predicts them best; its own score is of mixtures found without the fold that is scored. Runs on
    equal mixes are left out together. Raises MX051 for fewer than 3 different mixes, and where
    boosting alone has too few runs to tell any apart.
    """
    if family == "boosting" and len(ratios) < boosting.FEWEST:
        message = f"boosting needs {boosting.FEWEST} runs at least, not {len(ratios)}"
        raise MixcError("MX051", message, help="plan or give more runs, or choose another family")
    order = np.lexsort(np.sort(ratios, axis=0)[::-1]).astype(np.int64)
    rows = np.lexsort(np.hstack([ratios[:, order], losses]).T[::-1])  # sums depend on their order
    seen, losses = np.ascontiguousarray(ratios[rows][:, order]), losses[rows]
    folds = _folds(seen, seed)
    names = MEMBERS if family in ("auto", "ensemble") else (family,)
    held = {name: _left_out(name, seen, losses, folds, seed) for name in names}
    shares = np.ones((1, losses.shape[1]))
    predicted = dict(held)
    if len(names) > 1:
        stack = np.stack([held[name] for name in names])
        shares = _stack(stack, losses)
        predicted["ensemble"] = np.empty_like(losses)
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(losses)), fold)
            weights = _stack(stack[:, rest], losses[rest])
            predicted["ensemble"][fold] = np.einsum("fm,fnm->nm", weights, stack[:, fold])
    chosen = _choose(family, predicted, losses)
    for j, name in enumerate(chosen):
        if name != "ensemble":
            shares[:, j] = [float(name == one) for one in names]
    # The Gaussian processes always, so that the surface has a smooth part.
    used = [i for i, name in enumerate(names) if (shares[i] > 0).any() or name == "gaussian"]
    members = tuple(_fit(names[i], seen, losses, seed) for i in used)
    scores = {name: score(found, losses) for name, found in predicted.items()}
    left_out = np.empty_like(losses)
    left_out[rows] = np.stack([predicted[name][:, j] for j, name in enumerate(chosen)], axis=1)
    return Surface(members, shares[used], chosen, scores, order, left_out)


def score(predicted: Real, losses: Real) -> Score:
    """Scores of predictions [n, m]; ties have their mean rank."""
    from scipy.stats import rankdata

    varies = np.ptp(losses, axis=0) > 0
    error, variance = ((predicted - losses) ** 2).mean(axis=0), losses.var(axis=0)
    r2 = np.where(varies, 1 - error / np.where(varies, variance, 1), np.nan)
    ranks = [rankdata(array, axis=0) for array in (predicted, losses)]
    a, b = (one - one.mean(axis=0) for one in ranks)
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    # Predictions that are all equal rank nothing.
    spearman = np.where(varies, (a * b).sum(axis=0) / np.where(norm > 0, norm, 1), np.nan)
    return Score(spearman, r2)


def _folds(ratios: Real, seed: int) -> list[Index]:
    """The runs of each fold; equal mixes share one, whatever the order of the runs."""
    distinct, which = np.unique(ratios, axis=0, return_inverse=True)
    if len(distinct) < _FEWEST:
        raise MixcError(
            "MX051",
            f"a regression needs runs on {_FEWEST} different mixes at least, not {len(distinct)}",
            help="plan or give more runs; three for each domain are a good beginning",
        )
    fold = Stream(seed, "folds").permutation(len(distinct)) % min(_FOLDS, len(distinct))
    mine = fold[which.ravel()]
    return [np.flatnonzero(mine == one) for one in range(int(fold.max()) + 1)]


def _fit(name: str, ratios: Real, losses: Real, seed: int) -> Member:
    fits: dict[str, Callable[[], Member]] = {
        "log_linear": lambda: log_linear.fit(ratios, losses),
        "gaussian": lambda: gaussian.fit(ratios, losses, seed=seed),
        "boosting": lambda: boosting.fit(ratios, losses),
    }
    return fits[name]()


def _left_out(name: str, ratios: Real, losses: Real, folds: Sequence[Index], seed: int) -> Real:
    """Each run's metrics, predicted by a fit to the other folds, float64[n, m]."""
    found = np.empty_like(losses)
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(losses)), fold)
        found[fold] = _fit(name, ratios[rest], losses[rest], seed).predict(ratios[fold])
    return found


def _stack(predicted: Real, losses: Real) -> Real:
    """Shares of each member, of sum 1, that predict each metric best, float64[F, m].

    predicted float64[F, n, m]. Stacked regression: Breiman, Machine Learning 24 (1996).
    """
    from scipy.optimize import nnls

    shares = np.empty((len(predicted), losses.shape[1]))
    mean, scale = mean_and_scale(losses)
    one = 1e3 * len(losses) ** 0.5  # in a row that makes shares sum to 1
    for j, truth in enumerate(((losses - mean) / scale).T):
        columns = np.clip((predicted[:, :, j] - mean[j]) / scale[j], -1e3, 1e3).T
        system = np.vstack([columns, np.full(len(predicted), one)])
        found = nnls(system, np.append(truth, one))[0]
        found[found < _LEAST_SHARE * found.sum()] = 0.0
        shares[:, j] = found / found.sum()
    return shares


def _choose(family: str, predicted: Mapping[str, Real], losses: Real) -> tuple[str, ...]:
    """The family of each metric: the first, from simple to wild, that is about as good as any.

    A log-linear law has one lowest point, a Gaussian process a smooth way to each of its own; a
    surface of steps has to earn its keep.
    """
    if family != "auto":
        return (family,) * len(losses.T)
    errors = np.stack([((found - losses) ** 2).mean(axis=0) for found in predicted.values()])
    good = errors <= _AS_GOOD * errors.min(axis=0)
    names = tuple(predicted)
    return tuple(names[int(i)] for i in good.argmax(axis=0))
