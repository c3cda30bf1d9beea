"""Aioli: who helps whom, learnt again and again while the model trains (arXiv:2411.05735).

The run is cut into rounds. At a round's begin, short probes train on mixes that lean to one domain
each. What each domain's loss gave up under each probe says, by a linear system, what a unit of each
domain does for each: A[i, j], how much training on j lowers the loss of i. Then the weights go
w <- w * exp(eta * sum_i A[i, j]), and the rest of the round trains on them (algorithm 1). Probes
are part of the training: they cost no run of their own, only the holdout's losses after each.

As in the authors' code A is shifted to be positive and scaled to sum to one, and smoothed over
rounds. The answer is the mean of the rounds' weights; they are also a schedule.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixc.recipe import Strict
from mixc.solve.problem import Problem, Solution
from mixc.solve.rounds import train_in_rounds

Real = NDArray[np.float64]


class Options(Strict):
    """Options of `solve.aioli`."""

    eta: float = Field(default=0.2, gt=0, description="step size of the weights")
    rounds: int = Field(default=4, ge=1, description="how often the weights change in the run")
    sweeps: int = Field(default=2, ge=1, description="times that each domain is probed a round")
    probe_share: float = Field(
        default=0.5, gt=0, lt=1, description="share of a round that its probes take"
    )
    lean: float = Field(
        default=0.625, gt=0, le=1, description="share of a probe's rows that are of its domain"
    )
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="what is kept of the A before")


def probes(count: int, lean: float) -> Real:
    """The probes' mixes, [K, K]: row j has `lean` of domain j, and the rest of all, evenly."""
    return lean * np.eye(count) + (1 - lean) / count


def effects(mixes: Real, drops: Real) -> Real:
    """A [K, K] such that drops[j, i] = sum_l A[i, l] mixes[j, l] (the paper's linear law).

    mixes [K, K] are the probes', drops[j, i] how much probe j lowered the loss of domain i.
    """
    return np.asarray(np.linalg.solve(mixes, drops).T)


def normalised(A: Real) -> Real:
    """A shifted so that nothing is negative, and scaled to sum to one; all alike if all is 0."""
    shifted = A - min(0.0, float(A.min()))
    total = float(shifted.sum())
    return shifted / total if total > 0 else np.full_like(A, 1 / A.size)


def update(weights: Real, A: Real, eta: float) -> Real:
    """The next weights, float64[K]: w_j exp(eta sum_i A[i, j]), normalised."""
    gain = eta * A.sum(axis=0)
    raw = weights * np.exp(gain - gain.max())
    return np.asarray(raw / raw.sum())


def learn(mixes: Real, drops: Real, before: Real, smoothing: float) -> Real:
    """A of a round, normalised and smoothed by the one before, [K, K].

    drops [S, K, K]: how much each probe lowered each loss, in S sweeps over the probes.
    """
    return smoothing * before + (1 - smoothing) * normalised(effects(mixes, drops.mean(axis=0)))


def solve(problem: Problem, options: Options) -> Solution:
    """Train once, in rounds of probes and of the weights that they lead to.

    The interval of a weight is its range over the rounds. Raises MX007 if a probe would have no
    step, MX051 where nothing is held out.
    """
    lab, count = problem.lab, len(problem.domains)
    lab.need_holdout("probes")
    # However domains are numbered or called.
    largest_first = lab.order[np.argsort(-problem.tokens[lab.order], kind="stable")]
    mixes = probes(count, options.lean)[largest_first]
    turns = options.sweeps * count  # probes of a round; after them a stretch under its weights
    uniform = np.full(count, 1 / count)

    def weights_after(number: int, losses: Real) -> tuple[Real, Real]:
        """A and the weights that round `number` leads to."""
        if number < 0:
            return np.full((count, count), 1 / count**2), uniform
        A, weights = weights_after(number - 1, losses)
        first = number * (turns + 1)
        drops = losses[first : first + turns] - losses[first + 1 : first + turns + 1]
        A = learn(mixes, drops.reshape(options.sweeps, count, count), A, options.smoothing)
        return A, update(weights, A, options.eta)

    def next_weights(number: int, losses: Real) -> Real:
        of_round, turn = divmod(number, turns + 1)
        return mixes[turn % count] if turn < turns else weights_after(of_round, losses)[1]

    share = options.probe_share
    lengths = [share / turns] * turns + [1 - share]
    found = train_in_rounds(lab, "aioli", options.rounds * lengths, next_weights)
    weights = found.weights[turns :: turns + 1]
    return Solution(
        weights=weights.mean(axis=0),
        low=weights.min(axis=0),
        high=weights.max(axis=0),
        schedule=tuple(zip(found.ends[turns :: turns + 1], weights, strict=True)),
        bits_per_byte={"proxy": lab.bits_per_byte(found.trained.model)},
        tokens=found.trained.tokens,
        flops=found.flops,
        environment=lab.environment(),
    )
