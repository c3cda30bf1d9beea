"""MixMin: the mix whose ensemble of single-domain models is best (arXiv:2502.10510).

One cheap model is trained on each domain alone. For a large enough class of models, the best model
of a mix predicts by the mix of the domains' own models: the search for weights, a problem of two
levels, becomes min over the simplex of the cross-entropy of sum_s w_s p_s(y | x) on the target,
which is convex and needs no further training. With S domains it costs S runs, of a model and length
that may be small, and S numbers for each held-out token.

The target is the mean over the holdouts of all domains, or of those in `target`, of bits per byte.
A domain's own model is the best at its own holdout, so with all domains as the target the weights
go little from uniform; MixMin is meant for a target of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixc.errors import MixcError, did_you_mean
from mixc.recipe import Strict
from mixc.rng import Stream
from mixc.solve.problem import Problem, Solution
from mixc.solve.simplex import minimise

Real = NDArray[np.float64]
_BLOCK, _DRAWS, _LEVEL = 256, 100, 0.95


class Options(Strict):
    """What the mix shall be good at."""

    target: tuple[str, ...] = Field(
        default=(), strict=False, description="domains whose holdout counts; none: all"
    )
    sources: tuple[str, ...] = Field(
        default=(), strict=False, description="domains that may have weight; none: all"
    )

    def named(self) -> tuple[str, ...]:
        """The domains that it names."""
        return (*self.target, *self.sources)


@dataclass(frozen=True)
class Mixed:
    """The best weights float64[S], their cross-entropy in nats, and how far that is from the
    least one at most.
    """

    weights: Real
    value: float
    gap: float


def mix_models(losses: Real, share: Real) -> Mixed:
    """argmin over w on the simplex of sum_n share_n * -log sum_s w_s exp(-losses[n, s]).

    losses [N, S] in nats, of each token under each domain's model; share [N] sums to one. The
    objective is convex: it is never further from its least than the steepest way down from w, to a
    single domain, is steep.
    """
    least = losses.min(axis=1)
    density = np.exp(least[:, None] - losses)
    floor = float(share @ least)

    def cross_entropy(weights: Real) -> tuple[float, Real]:
        mixed = density @ weights
        return floor - float(share @ np.log(mixed)), -((share / mixed) @ density)

    weights, value = minimise(cross_entropy, np.full(losses.shape[1], 1 / losses.shape[1]))
    gradient = cross_entropy(weights)[1]
    return Mixed(weights, value, float(weights @ gradient - gradient.min()))


def run_count(problem: Problem, options: Options) -> int:
    """How many models a solve trains."""
    return len(_chosen(problem, options.sources))


def solve(problem: Problem, options: Options) -> Solution:
    """Train a model on each source, score the target's holdout with each, and mix.

    The interval of a weight is a bootstrap over blocks of held-out tokens: it does not see the
    noise of the models' training. Raises MX008 for a domain that is not there, MX051 for a target
    that holds nothing out.
    """
    sources, target = _chosen(problem, options.sources), _chosen(problem, options.target)
    if not problem.lab.held_bytes[target].any():
        raise MixcError(
            "MX051",
            "the target of mixmin holds no token out",
            help="raise holdout.fraction, or name other domains under solve.mixmin.target",
        )
    target = [k for k in problem.lab.order.tolist() if k in target]  # blocks for the bootstrap
    held = []
    tokens, flops = 0, 0.0
    for number in sources:
        name = problem.domains[number]
        alone = np.zeros(len(problem.domains))
        alone[number] = 1.0
        trained = problem.lab.train(f"only-{name}", problem.lab.batches(alone))
        tokens, flops = tokens + trained.tokens, flops + trained.flops
        held.append(problem.lab.held_losses(trained.model))
    groups = [np.stack([one[k] for one in held], axis=1).astype(np.float64) for k in target]
    losses, share = _joined(groups, problem.lab.held_bytes[target])
    found = mix_models(losses, share).weights
    low, high = _interval(losses, share, seed=problem.seed)
    return Solution(
        weights=_spread(found, sources, len(problem.domains)),
        low=_spread(np.minimum(low, found), sources, len(problem.domains)),
        high=_spread(np.maximum(high, found), sources, len(problem.domains)),
        tokens=tokens,
        flops=flops,
        environment=problem.lab.environment(),
    )


def _chosen(problem: Problem, names: tuple[str, ...]) -> list[int]:
    if unknown := set(names) - set(problem.domains):
        name = min(unknown)
        message = f"mixmin names a domain that is not there: '{name}'"
        raise MixcError("MX008", message, help=did_you_mean(name, list(problem.domains)))
    return [i for i, name in enumerate(problem.domains) if not names or name in names]


def _joined(groups: list[Real], sizes: Real) -> tuple[Real, Real]:
    """Tokens of all groups, and what each counts for: groups as bits per byte, alike."""
    some = [(group, size) for group, size in zip(groups, sizes, strict=True) if len(group)]
    share = np.concatenate([np.full(len(group), 1 / size) for group, size in some])
    return np.concatenate([group for group, _ in some]), share / share.sum()


def _interval(losses: Real, share: Real, *, seed: int) -> tuple[Real, Real]:
    """Low and high of each weight, [S]: a bootstrap over blocks of 256 tokens that follow."""
    blocks = -(-len(losses) // _BLOCK)
    of = np.arange(len(losses)) // _BLOCK
    draws = []
    for draw in range(_DRAWS):
        taken = (Stream(seed, "mixmin", epoch=draw).uniforms(blocks) * blocks).astype(np.int64)
        again = share * np.bincount(taken, minlength=blocks)[of]
        if again.sum() > 0:
            draws.append(mix_models(losses, again / again.sum()).weights)
    tail = (1 - _LEVEL) / 2
    return np.quantile(draws, tail, axis=0), np.quantile(draws, 1 - tail, axis=0)


def _spread(values: Real, places: list[int], count: int) -> Real:
    out = np.zeros(count)
    out[places] = values
    return out
