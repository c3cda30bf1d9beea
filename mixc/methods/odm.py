"""ODM: online data mixing, a bandit over domains whose reward is their loss (arXiv:2312.02406).

One model is trained; the mix of each step follows what it lost on each domain before. The paper
takes the domains for arms of an adversarial bandit (Exp3): estimates R of the arms' rewards are
exponential means of loss / probability of being drawn, and the policy is

    pi = (1 - K eps) softmax(eps_before R) + eps,    eps_t = min(1 / K, sqrt(ln K / (K t)))

Since eps_t falls and R does not grow, that softmax flattens: over losses of 1.2 to 3.2 its largest
weight is 9% above its smallest after 30,000 steps. Variant `official` does as the released code
(github.com/alon-albalak/online-data-mixing): R is an exponential mean of exp(loss), without the
importance weights, and

    pi = (1 - K eps) R / sum(R) + eps

whose weights differ as the domains' perplexities do. Both start from R = 0 after a warm-up on a
fixed mix, and a domain keeps its R over steps that have no row of it. Two differences remain: rows
are dealt in proportion to pi rather than drawn by it, so that a batch has less noise, and all rows
of a batch, not one domain at a time, give the reward of a step.

The reward is a loss, so what cannot be learnt keeps its weight.

The answer is a schedule, the policy's means over equal parts of the run after the warm-up, and,
where one mix is wanted, the mean of them all. Cost: one training run, 3 forward passes a token.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixc.recipe import Strict
from mixc.solve.intervals import block_bootstrap
from mixc.solve.problem import Problem, Schedule, Solution, Weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from mixc.proxy.train import Batch, Objective, Records


class Options(Strict):
    """Options of `solve.odm`."""

    variant: Literal["paper", "official"] = Field(
        default="paper",
        description="paper: Gibbs policy of importance-weighted losses; official: proportional "
        "to perplexity",
    )
    memory: float = Field(
        default=0.9, ge=0, lt=1, description="what an estimate keeps of itself at each step"
    )
    warmup: float = Field(
        default=0.01, ge=0, lt=1, description="share of the steps that are on the initial mix"
    )
    initial: Literal["natural", "uniform"] = Field(
        default="natural", description="the mix of the warm-up"
    )
    stages: int = Field(default=10, ge=1, description="stages of the schedule")


def solve(problem: Problem, options: Options) -> Solution:
    """Train one model under the policy, and compile what the policy did.

    The interval of each weight is a block bootstrap over the steps after the warm-up. Errors:
    MX050 when the model diverges.
    """
    lab, count = problem.lab, len(problem.domains)
    uniform = np.full(count, 1 / count)
    initial = uniform if options.initial == "uniform" else problem.tokens / problem.tokens.sum()
    steps = lab.train_options().steps
    records = new_records(steps, count)
    weights = policy(options, records, initial)
    objective = bandit(options, records, weights)
    trained = lab.train("odm", lab.scheduled_batches(weights), objective, records=records)
    after = records["alpha"][min(warm_steps(options, steps), steps - 1) :]
    mean = after.mean(axis=0)
    low, high = block_bootstrap(after, seed=problem.seed)
    return Solution(
        weights=mean,
        low=np.minimum(low, mean),
        high=np.maximum(high, mean),
        schedule=compile_stages(after, options.stages),
        trajectory={**records, "loss": trained.losses},
        bits_per_byte={"odm": lab.bits_per_byte(trained.model)},
        tokens=trained.tokens,
        flops=trained.flops,
        environment=lab.environment(),
    )


def new_records(steps: int, domains: int) -> Records:
    """What a run records of each step, float64[steps, K].

    `alpha`, the policy that its rows were dealt by; `reward`, their mean loss in nats, 0 for a
    domain without a row; `estimate`, R after the step.
    """
    return {name: np.zeros((steps, domains)) for name in ("alpha", "reward", "estimate")}


def warm_steps(options: Options, steps: int) -> int:
    """The steps of the warm-up: at least one, since R is 0 before."""
    return max(1, round(options.warmup * steps))


def policy(options: Options, records: Records, initial: Weights) -> Callable[[int], Weights]:
    """The weights of a step, from what the steps before it recorded.

    The rewards of the warm-up's last step give the first estimates.
    """
    warm = warm_steps(options, len(records["estimate"]))
    rule = linear if options.variant == "official" else gibbs

    def weights(step: int) -> Weights:
        estimate = records["estimate"][step - 1]
        # Some domain has been seen, or the estimates say nothing yet.
        return rule(estimate, step) if step >= warm and estimate.any() else initial

    return weights


def bandit(options: Options, records: Records, weights: Callable[[int], Weights]) -> Objective:
    """The plain mean loss; beside it, what the step's losses say of the domains is recorded."""
    steps, domains = records["estimate"].shape
    first = warm_steps(options, steps) - 1

    def objective(step: int, losses: Tensor, batch: Batch) -> Tensor:
        from mixc.proxy.train import domain_stats

        stats = domain_stats(losses, batch, domains)
        reward, drawn = np.nan_to_num(stats.mean()), stats.present
        pi = weights(step)
        records["alpha"][step], records["reward"][step] = pi, reward
        if step >= first:
            before = records["estimate"][step - 1] if step else np.zeros(domains)
            if options.variant == "official":
                gain = np.exp(reward)
            else:
                gain = reward / np.maximum(pi, exploration(step, domains))
            records["estimate"][step] = remember(before, gain, drawn, options.memory)
        return losses.mean()

    return objective


def exploration(step: int, domains: int) -> float:
    """eps of a step, the least weight of each of K domains: min(1 / K, sqrt(ln K / (K step)))."""
    return float(min(1, np.sqrt(domains * np.log(domains) / max(step, 1)))) / domains


def gibbs(estimate: Weights, step: int) -> Weights:
    """The paper's policy at a step >= 1, float64[K]: (1 - K eps) softmax(eps_before R) + eps."""
    domains = len(estimate)
    eps = exploration(step, domains)
    raised = exploration(step - 1, domains) * (estimate - estimate.max())
    shares = np.exp(raised) / np.exp(raised).sum()
    return np.asarray((1 - domains * eps) * shares + eps, np.float64)


def linear(estimate: Weights, step: int) -> Weights:
    """The released code's policy at a step >= 1, float64[K]: (1 - K eps) R / sum(R) + eps.

    Some R must be above 0.
    """
    domains = len(estimate)
    eps = exploration(step, domains)
    return np.asarray((1 - domains * eps) * (estimate / estimate.sum()) + eps, np.float64)


def remember(estimate: Weights, gain: Weights, drawn: NDArray[np.bool_], memory: float) -> Weights:
    """R after a step, float64[K]: memory R + (1 - memory) gain where drawn, else R."""
    return np.where(drawn, memory * estimate + (1 - memory) * gain, estimate)


def compile_stages(weights: NDArray[np.float64], stages: int) -> Schedule:
    """A trajectory [T, K] as at most `stages` equal parts: where each ends, and its mean.

    The ends are shares of the run, the last 1.
    """
    steps = len(weights)
    ends = np.unique(np.round(np.linspace(0, steps, min(stages, steps) + 1)).astype(np.int64))
    return tuple(
        (float(end / steps), weights[begin:end].mean(axis=0)) for begin, end in pairwise(ends)
    )
