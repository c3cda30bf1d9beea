"""DoReMi: group DRO on the excess loss of a proxy over a reference (arXiv:2305.10429).

A reference model is trained on a simple mix; a proxy of the same size is then trained on
batches drawn evenly from all domains, its loss weighted by domain weights alpha that rise, by
exponentiated gradient, where the proxy is still worse than the reference. The answer is the mean
of alpha over the steps. With more rounds, the reference of the next is trained on that mean, until
no weight changes by more than `tolerance` (section 2, "iterated DoReMi").

The excess of a token is clipped at zero before it is averaged, as in the paper. So a domain whose
excess X is zero in the mean still has lambda = E[max(X, 0)] > 0, and the more the noisier its
losses are. The trajectory has both `clipped_excess` and `excess`; what the first exceeds
max(excess, 0) by is that bias, step by step and domain by domain.

Variant `official` does as the released code (github.com/sangmichaelxie/doremi):
- the loss is the mean over tokens weighted by alpha, not the sum over domains of alpha times
  the domain's mean (`weighted_token_mean`);
- a domain that is absent from a batch moves by its last lambda, at first log(vocabulary), where
  the paper's variant leaves it as it is;
- the mean of alpha has the uniform alpha of before the first step in it;
- the smoothing is 1e-4, where the paper's is 1e-3.
What belongs to its trainer is not reproduced: alpha one step late on all ranks but the first and
inside accumulated batches, the reference in training mode, and its optimiser.

Cost: a round trains two models, and the reference scores rows that the proxy is trained on, a pass
of three of a plain run's if it scores all. Alpha follows means over many tokens, so `scored` is 1/4
by default: the tokens of every fourth row move it, evenly over the run, and a domain with none in a
step moves by its last lambda. That makes 2.08 plain runs, where the paper's every row makes 2.33.
What it does to the answer is the noise of fewer tokens: see README.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixc.recipe import Strict
from mixc.solve.intervals import block_bootstrap
from mixc.solve.mirror import raised
from mixc.solve.problem import Problem, Solution, Weights

if TYPE_CHECKING:  # torch takes a second to import, and the recipe's schema needs only Options
    from torch import Tensor

    from mixc.proxy.train import Batch, Objective, Records, Trained
    from mixc.solve.lab import Lab
    from mixc.solve.runs import MixRun

_SMOOTHING = {"paper": 1e-3, "official": 1e-4}


class Options(Strict):
    """Options of `solve.doremi`."""

    variant: Literal["paper", "official"] = Field(
        default="paper", description="algorithm 1 of the paper, or as the released code does"
    )
    eta: float = Field(default=1.0, gt=0, description="step size of the domain weights")
    smoothing: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of the uniform mix added at every step; default: 1e-3, official 1e-4",
    )
    reference: Literal["natural", "uniform"] = Field(
        default="natural", description="the mix that the first reference model is trained on"
    )
    scored: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="share of the proxy's rows that the reference scores, and that move the "
        "weights; the paper's is 1",
    )
    rounds: int = Field(
        default=1, ge=1, description="rounds at most; each has its reference on the last's answer"
    )
    tolerance: float = Field(
        default=1e-3, gt=0, description="a round that changes no weight by more is the last"
    )


def solve(problem: Problem, options: Options) -> Solution:
    """Train reference and proxy round by round, and average alpha over the last round's steps.

    The interval of each weight is a block bootstrap over those steps. Errors: MX050 when a model
    diverges.
    """
    lab, count = problem.lab, len(problem.domains)
    uniform = np.full(count, 1 / count)
    mix = uniform if options.reference == "uniform" else problem.tokens / problem.tokens.sum()
    rounds: list[_Round] = []
    for number in range(1, options.rounds + 1):
        rounds.append(_round(lab, str(number), mix, options))
        before, mix = mix, mean_alpha(rounds[-1].records["alpha"], options.variant)
        if np.abs(mix - before).max() <= options.tolerance:
            break
    last = rounds[-1]
    low, high = block_bootstrap(last.records["alpha"], seed=problem.seed)
    scored = lab.scored_share(uniform, options.scored)
    return Solution(
        weights=mix,
        low=np.minimum(low, mix),
        high=np.maximum(high, mix),
        trajectory={
            "round": np.repeat(np.arange(len(rounds)) + 1.0, len(last.proxy.losses)),
            **{name: np.concatenate([r.records[name] for r in rounds]) for name in last.records},
            "proxy_loss": np.concatenate([r.proxy.losses for r in rounds]),
            "reference_loss": np.concatenate([r.reference.losses_per_step for r in rounds]),
        },
        # The proxy is not scored: no model to use, and `excess` says where it is behind.
        bits_per_byte={"reference": last.reference.bits_per_byte},
        tokens=sum(r.reference.tokens + r.proxy.tokens for r in rounds),
        # A third of the proxy's own is what a forward pass over all its rows costs.
        flops=sum(r.reference.flops + r.proxy.flops * (1 + scored / 3) for r in rounds),
        environment=lab.environment(),
    )


def run_count(problem: Problem, options: Options) -> int:  # noqa: ARG001
    """Runs of a reference and a proxy: one a round, at most."""
    return options.rounds


def beside_flops(problem: Problem, options: Options) -> float:
    """Operations of the references that score, in all rounds, at most."""
    lab, count = problem.lab, len(problem.domains)
    scored = lab.scored_share(np.full(count, 1 / count), options.scored)
    return options.rounds * scored * lab.run_flops / 3


@dataclass(frozen=True)
class _Round:
    """What the reference came to, the proxy trained against it, and what that run recorded."""

    reference: MixRun
    proxy: Trained
    records: Records


def _round(lab: Lab, name: str, mix: Weights, options: Options) -> _Round:
    """Train a reference on `mix`, and a proxy against it."""
    batches = lab.batches(np.full(len(mix), 1 / len(mix)))
    reference = lab.train(f"reference-{name}", lab.batches(mix))
    train_options = lab.train_options()
    records = new_records(train_options.steps, len(mix))
    part = batches.part(options.scored)
    scored = lab.reference_losses(reference.model, part, f"reference-{name}")
    vocab = train_options.vocab_size
    objective = group_dro(scored, options, records, vocab=vocab, places=part.places)
    proxy = lab.train(f"proxy-{name}", batches, objective, records=records)
    return _Round(lab.score_run(mix, reference), proxy, records)


def new_records(steps: int, domains: int) -> Records:
    """What a proxy's run records of each step, float64[steps, K].

    `alpha`, after the step's update; `clipped_excess`, the lambda that moved it; `excess`, the
    same mean unclipped; and `present`, 1 where a token of the domain was scored. Where none was,
    the excess is 0 and lambda the last.
    """
    names = ("alpha", "clipped_excess", "excess", "present")
    return {name: np.zeros((steps, domains)) for name in names}


def group_dro(
    reference: Callable[[int], NDArray[np.float32]],
    options: Options,
    records: Records,
    *,
    vocab: int,
    places: Callable[[int], NDArray[np.int64]] | None = None,
) -> Objective:
    """The proxy's objective. `reference(step)` are its losses on the batch, float32[B, T].

    With `places`, those of the rows that stand at `places(step)` in the batch; a domain with none
    of its rows among them moves by its last lambda.

    Alpha moves between the forward and the backward pass, so the weights of step t act on the
    loss of step t; that loss is unclipped, and without the reference's part, a constant.
    """
    count = records["alpha"].shape[1]
    official = options.variant == "official"
    smoothing = _SMOOTHING[options.variant] if options.smoothing is None else options.smoothing
    first = np.full(count, np.log(vocab) if official else 0.0)

    def objective(step: int, losses: Tensor, batch: Batch) -> Tensor:
        from mixc.proxy.train import domain_stats, weighted_loss

        here = np.arange(len(batch.domain)) if places is None else places(step)
        part = replace(batch, tokens=batch.tokens[here], domain=batch.domain[here])
        stats = domain_stats(losses.detach()[here], part, count, reference(step))
        # Each domain's lambda: its tokens' excess losses clipped at 0, then averaged (algorithm 1).
        last = records["clipped_excess"][step - 1] if step else first
        lam = np.where(stats.present, np.nan_to_num(stats.mean_excess()), last)
        alpha = records["alpha"][step - 1] if step else np.full(count, 1 / count)
        drawn = np.bincount(batch.domain, minlength=count) > 0
        alpha = update(alpha, lam, drawn | official, options.eta, smoothing)
        records["alpha"][step], records["clipped_excess"][step] = alpha, lam
        records["excess"][step] = np.nan_to_num(stats.mean_raw_excess())
        records["present"][step] = stats.present
        if official:
            return weighted_token_mean(losses, batch, alpha)
        return weighted_loss(losses, batch, alpha)

    return objective


def update(
    alpha: NDArray[np.float64],
    lam: NDArray[np.float64],
    present: NDArray[np.bool_],
    eta: float,
    smoothing: float,
) -> NDArray[np.float64]:
    """One step of the domain weights, float64[K] on the simplex (algorithm 1).

    alpha' = alpha exp(eta lam) / Z, then (1 - smoothing) alpha' + smoothing / K.

    A domain that is absent from the batch has no lambda. It gets no update: its weight stands as
    it is, and Z is such that the domains present keep, together, the mass that they had. (Taking
    its lambda as 0 would push it down, as all others are >= 0.) Smoothing then acts on all.
    Equal lambdas leave the step's weights exactly as they are. With smoothing 0, a weight may
    reach 0, and then stays there.
    """
    stepped = raised(alpha, eta * lam, present)
    # Not (1 - c) a + c / K: in this form uniform weights stay uniform to the bit.
    return stepped + smoothing * (1.0 / len(alpha) - stepped)


def mean_alpha(alpha: NDArray[np.float64], variant: str) -> NDArray[np.float64]:
    """The answer, float64[K]: the mean of alpha [T, K] over the steps.

    The released code starts its counter with the uniform weights of before the first step.
    """
    if variant == "official":
        alpha = np.concatenate([np.full((1, alpha.shape[1]), 1 / alpha.shape[1]), alpha])
    return np.asarray(alpha.mean(axis=0), np.float64)


def weighted_token_mean(losses: Tensor, batch: Batch, weights: NDArray[np.float64]) -> Tensor:
    """The mean of losses [B, T] over tokens weighted by their domains' weights, float64[K].

    The released code's loss. It divides weights by the domains' sampling weights first; batches
    are drawn evenly here, which leaves them as they are.
    """
    import torch

    share = weights[batch.domain] / (weights[batch.domain].sum() * losses.shape[1])
    return (losses * torch.from_numpy(share).to(losses)[:, None]).sum()
