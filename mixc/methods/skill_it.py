"""Skill-It: weights that follow what domains still lose, along who helps whom (arXiv:2307.14430).

First a model is trained on each domain alone, which gives the graph A: A[i, j] is the part of its
loss that domain j gave up while training was on domain i. Then one model is trained in rounds; in
each, weights are exp(eta * A @ L), where L is the sum of the domains' losses over the last `window`
rounds (section 4, algorithm 1; every round starts from ones, as in the authors' code).

The answer is the mean of the rounds' weights; they are also a schedule. Costs K short runs for the
graph, one full run, and the holdout's losses at every round's end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixc.recipe import Strict
from mixc.solve.problem import Problem, Solution
from mixc.solve.rounds import round_starts, train_in_rounds

Real = NDArray[np.float64]


class Options(Strict):
    """Options of `solve.skill_it`."""

    eta: float = Field(default=0.5, gt=0, description="step size of the weights")
    rounds: int = Field(default=6, ge=2, description="how often the weights change in the run")
    window: int = Field(default=3, ge=1, description="rounds whose losses count")


def graph(before: Real, after: Real) -> Real:
    """Who helps whom: A[i, j], the part of its loss that j gave up under training on i, [K, K].

    before [K]: losses of the untrained model; after [K, K]: after[i, j] the loss on domain j of
    the model trained on i. What training made worse counts as no help, and a domain without a
    loss gives up nothing.
    """
    gained = np.maximum(before - after, 0.0)
    return np.divide(gained, before, out=np.zeros_like(gained), where=before > 0)


def update(A: Real, losses: Real, eta: float) -> Real:
    """Weights of the next round, float64[K], from the losses [W, K] of the last W rounds."""
    gain = eta * (A @ losses.sum(axis=0))
    raw = np.exp(gain - gain.max())
    return np.asarray(raw / raw.sum())


def run_count(problem: Problem, options: Options) -> int:  # noqa: ARG001
    """How many models a solve trains."""
    return len(problem.domains) + 1


def solve(problem: Problem, options: Options) -> Solution:
    """Learn the graph, then train once with weights that follow it.

    The interval of a weight is its range over the rounds. Raises MX007 if a round would have no
    step, MX051 where nothing is held out.
    """
    lab, count = problem.lab, len(problem.domains)
    lab.need_holdout("domains")
    lengths = [1.0] * options.rounds
    round_starts(lengths, lab.options.steps)  # before anything trains
    alone = []
    for number, name in enumerate(problem.domains):
        mix = np.zeros(count)
        mix[number] = 1.0
        alone.append(lab.run_mix(mix, label=f"on {name} alone"))
    after = np.nan_to_num(np.stack([one.bits_per_byte for one in alone]))

    def next_weights(number: int, losses: Real) -> Real:
        A = graph(losses[0], after)
        return update(A, losses[max(0, number + 1 - options.window) :], options.eta)

    found = train_in_rounds(lab, "skill-it", lengths, next_weights)
    return Solution(
        weights=found.weights.mean(axis=0),
        low=found.weights.min(axis=0),
        high=found.weights.max(axis=0),
        schedule=tuple(zip(found.ends, found.weights, strict=True)),
        bits_per_byte={"proxy": lab.bits_per_byte(found.trained.model)},
        tokens=found.trained.tokens + sum(one.tokens for one in alone),
        flops=found.flops + sum(one.flops for one in alone),
        environment=lab.environment(),
    )
