"""DoReMi: group DRO on the excess loss of a proxy over a reference (arXiv:2305.10429).

A reference model is trained on a simple mix; a proxy of the same size is then trained on
batches drawn evenly from all domains, its loss weighted by domain weights alpha that rise, by
exponentiated gradient, where the proxy is still worse than the reference. The answer is the mean
of alpha over the steps.

The excess of a token is clipped at zero before it is averaged, as in the paper. So a domain whose
excess X is zero in the mean still has lambda = E[max(X, 0)] > 0, and the more the noisier its
losses are. The result records both `lam` and the unclipped `excess`; lam - max(excess, 0) is that
bias, step by step and domain by domain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixc.recipe import Strict
from mixc.solve.intervals import block_bootstrap
from mixc.solve.problem import Problem, Solution

if TYPE_CHECKING:  # torch takes a second to import, and the recipe's schema needs only Options
    from torch import Tensor

    from mixc.proxy.model import Model
    from mixc.proxy.train import Batch, Batches, Objective, Records, Trained
    from mixc.solve.trainer import Trainer


class Options(Strict):
    """Options of `solve.doremi`."""

    variant: Literal["paper"] = Field(default="paper", description="algorithm 1 of the paper")
    eta: float = Field(default=1.0, gt=0, description="step size of the domain weights")
    smoothing: float = Field(
        default=1e-3, ge=0, lt=1, description="share of the uniform mix added at every step"
    )
    reference: Literal["natural", "uniform"] = Field(
        default="natural", description="the mix that the reference model is trained on"
    )


@dataclass(frozen=True)
class DoReMiResult:
    """What a run found. T is the number of proxy steps, K of domains; losses in nats a token.

    `alpha_mean` [K] is the answer: the mean of alpha [T, K], which starts after the first
    update. `lam` [T, K] is the clipped excess that moved alpha, `excess` [T, K] the same mean
    unclipped; both are 0 where `present` [T, K] says that the batch held none of the domain.
    """

    alpha_mean: NDArray[np.float64]
    alpha: NDArray[np.float64]
    lam: NDArray[np.float64]
    excess: NDArray[np.float64]
    present: NDArray[np.bool_]
    reference: Trained
    proxy: Trained
    tokens: int
    flops: float


def solve(problem: Problem, options: Options) -> Solution:
    """Train the reference and the proxy on the problem's rows, and average alpha.

    The interval of each weight is a block bootstrap over the steps of this one run.
    """
    lab, count = problem.lab, len(problem.domains)
    uniform = np.full(count, 1 / count)
    natural = problem.tokens / problem.tokens.sum()
    result = run(
        lab.trainer,
        lab.batches(natural if options.reference == "natural" else uniform),
        lab.batches(uniform),
        count,
        options,
    )
    low, high = block_bootstrap(result.alpha, seed=problem.seed)
    return Solution(
        weights=result.alpha_mean,
        low=np.minimum(low, result.alpha_mean),
        high=np.maximum(high, result.alpha_mean),
        trajectory={
            "alpha": result.alpha,
            "clipped_excess": result.lam,
            "excess": result.excess,
            "present": result.present.astype(np.float64),
            "proxy_loss": result.proxy.losses,
            "reference_loss": result.reference.losses,
        },
        bits_per_byte={
            "reference": lab.bits_per_byte(result.reference.model),
            "proxy": lab.bits_per_byte(result.proxy.model),
        },
        tokens=result.tokens,
        flops=result.flops,
        environment=lab.environment(),
    )


def run(
    trainer: Trainer,
    reference_batches: Batches,
    proxy_batches: Batches,
    domains: int,
    options: Options,
    *,
    reference_init: Mapping[str, Tensor] | None = None,
    proxy_init: Mapping[str, Tensor] | None = None,
) -> DoReMiResult:
    """Train the reference on one sampler and the proxy on the other (paper, algorithm 1).

    `reference_batches` should draw from the mix `options.reference`, `proxy_batches` evenly from
    the `domains` domains. Both models start from the same seed, or from the state dicts given.
    Tokens are those trained on, by both models; flops include the reference's forward pass beside
    the proxy.

    Errors: MX050 when either model diverges.
    """
    from mixc.proxy.presets import flops_per_token

    reference = trainer.train("reference", reference_batches, init=reference_init)
    steps = trainer.options.steps
    names = ("alpha", "lam", "excess", "present")
    records = {name: np.zeros((steps, domains)) for name in names}
    objective = _group_dro(reference.model, options, records)
    proxy = trainer.train("proxy", proxy_batches, objective, records=records, init=proxy_init)
    model = trainer.options
    scored = flops_per_token(model.shape, model.vocab_size, model.seq_len) * proxy.tokens
    return DoReMiResult(
        alpha_mean=records["alpha"].mean(axis=0),
        alpha=records["alpha"],
        lam=records["lam"],
        excess=records["excess"],
        present=records["present"] > 0,
        reference=reference,
        proxy=proxy,
        tokens=reference.tokens + proxy.tokens,
        flops=reference.flops + proxy.flops + scored,
    )


def domain_excess(
    excess: NDArray[np.floating], domain: NDArray[np.integer], K: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Each domain's lambda: its tokens' excess losses clipped at 0, then averaged (algorithm 1).

    excess [N] in nats, domain [N] in [0, K). Returns lambda float64[K], 0 for a domain that has
    no token here, and present bool[K], which says which have one.
    """
    return _domain_mean(np.maximum(excess, 0.0), domain, K)


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
    stepped = alpha.copy()
    # Subnormal weights count as 0, so that no factor below can overflow.
    moving = present & (alpha >= np.finfo(np.float64).tiny)
    if moving.any():
        log_alpha, gain = np.log(alpha[moving]), eta * lam[moving]
        log_z = _log_sum_exp(log_alpha + (gain - gain.max())) - _log_sum_exp(log_alpha)
        stepped[moving] *= np.exp(gain - gain.max() - log_z)
    # Not (1 - c) a + c / K: in this form uniform weights stay uniform to the bit.
    return stepped + smoothing * (1.0 / len(alpha) - stepped)


def _group_dro(reference: Model, options: Options, records: Records) -> Objective:
    """The proxy's objective. Step t writes row t of each record [steps, K].

    Alpha moves between the forward and the backward pass, so the weights of step t act on the
    loss of step t; that loss is unclipped, and without the reference's part, a constant.
    """
    import torch

    from mixc.proxy.train import batch_losses, weighted_loss

    reference.eval().requires_grad_(False)
    K = records["alpha"].shape[1]

    def objective(step: int, losses: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            over = (losses - batch_losses(reference, batch)).cpu().numpy()
        domain = np.repeat(batch.domain, over.shape[1])
        lam, present = domain_excess(over.ravel(), domain, K)
        excess, _ = _domain_mean(over.ravel(), domain, K)
        before = records["alpha"][step - 1] if step else np.full(K, 1.0 / K)
        alpha = update(before, lam, present, options.eta, options.smoothing)
        found = {"alpha": alpha, "lam": lam, "excess": excess, "present": present}
        for name, values in found.items():
            records[name][step] = values
        return weighted_loss(losses, batch, alpha)

    return objective


def _domain_mean(
    values: NDArray[np.floating], domain: NDArray[np.integer], K: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean of values [N] in each domain, float64[K], 0 where there are none; and where not."""
    counts = np.bincount(domain, minlength=K)
    sums = np.bincount(domain, weights=values.astype(np.float64), minlength=K)
    return sums / np.maximum(counts, 1), counts > 0


def _log_sum_exp(x: NDArray[np.float64]) -> float:
    top = float(x.max())
    return top + float(np.log(np.exp(x - top).sum()))
