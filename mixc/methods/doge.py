"""DoGE: domains weighted by how their gradients align with a target's (arXiv:2310.15393).

One small model is trained on batches drawn evenly from all domains, with the gradient
sum_j alpha_j grad l_j. The weights alpha rise, by mirror descent, where a domain's gradient points
the way of the target's:

    alpha_j ~ alpha_j exp(rate W_j / mu),    W_j = <grad l_j, sum of the targets' gradients>

with the learning rate of the step. The targets are all domains ("universal"), or the domains that
`target` names, which are then not trained on and get weight 0 ("out of domain"). The answer is
the mean of alpha over the steps. Gradients are not held: all inner products come from the one
backward pass that trains (`mixc_kernels.domain_grads`).

A domain's product with itself, from one sample of rows, is too large by the variance of its
gradient. So the paper's variant takes each domain's rows in two halves, and the product of the
halves' gradients for it, which is unbiased; `diagonal: biased` takes it as it comes.

Variant `official` does as the released code (github.com/Olivia-fsm/doge):
- each domain's gradient is clipped to norm `clip` before the products;
- W is divided by the mean norm of the domains' gradients, and then cut to [0, 5], so that
  a domain that pulls against the target loses only as the others gain;
- the universal target is a domain of its own: a share of 1 / (K + 1) of each batch, rows of all
  domains that train nothing, so that no domain meets its own sample in it.
With targets that are trained on too, a domain's product with itself, biased, is in its score, as
in that code, whose branch against it is never taken. There the gradient of a domain that a batch
lacks also stays in the products as it was; here every batch must have rows of every domain.

With `gradient: adam` the products are in the metric of AdamW, which trains, rather than of plain
gradient steps: <g_j, P g_i>, P falling with the root of the second moments (`adam_scale`).

Cost: one training run, 3 forward passes a token, and the products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from mixc_kernels.domain_gram import DomainGram
from numpy.typing import NDArray
from pydantic import Field

from mixc.errors import MixcError
from mixc.recipe import Strict
from mixc.rng import Stream
from mixc.solve.intervals import block_jackknife
from mixc.solve.mirror import raised
from mixc.solve.problem import Problem, Solution, Weights
from mixc.solve.roles import Roles, roles

if TYPE_CHECKING:
    from torch import Tensor

    from mixc.proxy.checkpoint import State
    from mixc.proxy.train import Backward, Batch, Records

Gram = NDArray[np.float64]
Index = NDArray[np.int64]

_AUTHORS_RATE = 5e-4
_LEAST, _MOST = 0.0, 5.0  # the released code's bounds of scores, in learning rates


class Options(Strict):
    """Options of `solve.doge`."""

    variant: Literal["paper", "official"] = Field(
        default="paper", description="algorithm 1 of the paper, or as the released code does"
    )
    mu: float | None = Field(
        default=None,
        gt=0,
        description="damping of the domain weights; default: 100 peak learning rates for each "
        "target; official: 100 in all, without target 20",
    )
    target: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="domains to get better at; default: all, and all are trained on",
    )
    train_target: bool = Field(
        default=False, description="whether domains named by target are trained on too"
    )
    diagonal: Literal["split", "biased"] = Field(
        default="split",
        description="a domain's product with itself, of the paper's variant: of two halves of "
        "its rows, or of all with themselves",
    )
    gradient: Literal["sgd", "adam"] = Field(
        default="sgd", description="whose steps the products are of: plain gradients, or AdamW's"
    )
    clip: float = Field(
        default=5.0, gt=0, description="norm of a domain's gradient at most, of the official one"
    )

    def named(self) -> tuple[str, ...]:
        """The domains that it names."""
        return self.target


def solve(problem: Problem, options: Options) -> Solution:
    """Train one model with the weighted gradient, and average alpha over the steps.

    The interval of each weight is a jackknife over blocks of this one run's products: alpha adds
    them up. Errors: MX050 when the model diverges, MX007 when a batch is too small for `official`,
    MX008 and MX009 as in `roles`.
    """
    from mixc.proxy.train import peak_rate, rate_at

    lab, count = problem.lab, len(problem.domains)
    train_options = lab.train_options()
    records = new_records(train_options.steps, count)
    who = roles_of(problem.domains, options)
    slots = slots_of(problem, options)
    rate = partial(rate_at, options=train_options)
    weigh = mirror_descent(options, who, records, rate, peak_rate(train_options))
    batches = lab.batches(np.full(count, 1 / count))
    backward = aligned(options, slots, who, weigh)
    trained = lab.train("doge", batches, backward=backward, records=records)
    rates = np.array([rate(step) for step in range(train_options.steps)])
    sizes = rates / damping(options, peak_rate(train_options), int(who.target.sum()))
    moving = (records["present"] > 0) & who.trained
    low, high = block_jackknife(
        records["alignment"], lambda found: replay(found, sizes, moving, who).mean(axis=0)
    )
    return Solution(
        weights=records["alpha"].mean(axis=0),
        low=low,
        high=high,
        trajectory={**records, "loss": trained.losses},
        bits_per_byte={"doge": lab.bits_per_byte(trained.model)},
        tokens=trained.tokens,
        flops=trained.flops + beside_flops(problem, options),
        environment=lab.environment(),
    )


def beside_flops(problem: Problem, options: Options) -> float:
    """Operations of the products of gradients and of their mix, in all steps, at most."""
    from mixc_kernels.domain_gram import gram_flops

    lab, official = problem.lab, options.variant == "official"
    return lab.options.steps * gram_flops(
        slots_of(problem, options).count,
        lab.parameters,
        toward=not official,
        halves=not official and options.diagonal == "split",
        precondition=options.gradient == "adam",
    )


def roles_of(domains: tuple[str, ...], options: Options) -> Roles:
    """The domains' roles under the options. Errors: MX008, MX009 as in `roles`."""
    named, also = options.target, options.train_target
    return roles(domains, named, train_target=also, key="solve.doge.target")


def new_records(steps: int, domains: int) -> Records:
    """What a run records of each step, float64[steps, K].

    `alpha`, after the step's update; `alignment`, W of the paper; `norm` of the domain's gradient;
    `gain`, by which log alpha was raised; and `present`, 1 where the batch held rows of the domain.
    """
    names = ("alpha", "alignment", "norm", "gain", "present")
    return {name: np.zeros((steps, domains)) for name in names}


# (step, products of the slots' gradients) -> the slots' weights [S]
Weigh = Callable[[int, DomainGram], Weights]


@dataclass(frozen=True)
class Slots:
    """The gradients that a step tells apart: one of each domain, or one more, of the target that
    takes rows from all.
    """

    options: Options
    names: tuple[str, ...]  # of the domains' random streams
    seed: int

    @property
    def count(self) -> int:
        """How many there are."""
        alone = self.options.variant == "official" and not self.options.target
        return len(self.names) + alone

    def of(self, domain: Index, step: int) -> Index:
        """The slot of each row of a step's batch, int64[B], of the rows' domains, int64[B]."""
        count = len(self.names)
        if self.count == count:
            return domain
        lot = self._lots(domain, step)
        wanted = min(max(1, round(len(domain) / (count + 1))), int(np.isfinite(lot).sum()))
        slot = domain.copy()
        slot[np.argsort(lot, kind="stable")[:wanted]] = count
        return slot

    def _lots(self, domain: Index, step: int) -> Weights:
        """A random number for each row, infinite for the first of each domain: it keeps that."""
        lot = np.full(len(domain), np.inf)
        for k, name in enumerate(self.names):
            rows = np.flatnonzero(domain == k)[1:]
            lot[rows] = Stream(self.seed, "doge", name, step).uniforms(len(rows))
        return lot


def slots_of(problem: Problem, options: Options) -> Slots:
    """The gradients that a step of the problem tells apart."""
    names = tuple(str(problem.lab.names[name]) for name in problem.domains)
    return Slots(options, names, problem.seed)


def aligned(options: Options, slots: Slots, who: Roles, weigh: Weigh) -> Backward:
    """One backward pass: the products of the slots' gradients, then their weighted sum."""
    from mixc_kernels.room import Buffers

    buffers, official = Buffers(), options.variant == "official"
    clip = options.clip if official else None
    toward = None if official else who.target.astype(np.float64)

    def backward(state: State, batch: Batch) -> Tensor:
        import torch
        from mixc_kernels.domain_grads import DomainGrads

        from mixc.proxy.adam import adam_scale
        from mixc.proxy.device import few_threads
        from mixc.proxy.train import Batch, batch_losses

        slot = slots.of(batch.domain, state.step)
        order = np.argsort(slot, kind="stable")  # so that no layer has to sort what it read
        rows = Batch(batch.tokens[order], batch.domain[order])
        gradients = DomainGrads(
            state.model,
            torch.from_numpy(slot[order]),
            slots.count,
            toward=toward,
            halves=not official and options.diagonal == "split",
            precondition=adam_scale(state) if options.gradient == "adam" else None,
            buffers=buffers,
        )
        with few_threads(batch.predicted * state.model.shape.width):
            with gradients:
                losses = batch_losses(state.model, rows)
            gradients.backward(losses, partial(weigh, state.step), max_norm=clip)
        return losses.detach()[torch.from_numpy(np.argsort(order))]

    return backward


def mirror_descent(
    options: Options, who: Roles, records: Records, rate: Callable[[int], float], peak: float
) -> Weigh:
    """The step of alpha, which is recorded, and the weights of the slots' gradients by it."""
    count = len(who.trained)
    even = who.trained / who.trained.sum()
    mu = damping(options, peak, int(who.target.sum()))

    def weigh(step: int, gram: DomainGram) -> Weights:
        alpha = records["alpha"][step - 1] if step else even
        if options.variant == "official":
            _need_all(gram, who)
            score = official_alignment(gram, who, options.clip)
        else:
            score = alignment(gram.products, who.target)
        norms, present = gram.norms[:count], gram.present[:count]
        gain = rate(step) * score / mu
        alpha = raised(alpha, gain, present & who.trained)
        found = {"alpha": alpha, "alignment": score, "norm": norms, "gain": gain}
        for name, values in {**found, "present": present}.items():
            records[name][step] = values
        return np.concatenate([alpha, np.zeros(len(gram.tokens) - count)])

    return weigh


def replay(
    alignment: Gram, sizes: Weights, moving: NDArray[np.bool_], who: Roles
) -> NDArray[np.float64]:
    """Alpha [T, K] as a run's alignments [T, K] lead to it, in steps of sizes [T].

    `moving` [T, K] says which domains a step moved.
    """
    alpha, path = who.trained / who.trained.sum(), []
    for score, size, some in zip(alignment, sizes, moving, strict=True):
        alpha = raised(alpha, size * score, some)
        path.append(alpha)
    return np.stack(path)


def damping(options: Options, peak: float, targets: int) -> float:
    """mu: as given, or so many peak learning rates as in the authors' runs, whose peak is 5e-4.

    Those were of the released code. The paper's W is a sum over targets, not scaled by the norm of
    gradients, so that each target has its share of damping there.
    """
    if options.mu is not None:
        return options.mu
    rates = peak / _AUTHORS_RATE
    if options.variant == "paper":
        return 0.05 * rates * targets
    return (0.05 if options.target else 0.01) * rates


def alignment(products: Gram, target: NDArray[np.bool_]) -> Weights:
    """W of the paper, float64[K]: sum over targets i of <g_j, g_i>.

    Of products [K, K], or of those with that sum, [K], as they are. A domain without an unbiased
    product with itself (NaN) is taken to have none.
    """
    if products.ndim == 1:
        return products
    return np.asarray(np.nan_to_num(products) @ target, np.float64)


def official_alignment(gram: DomainGram, who: Roles, clip: float) -> Weights:
    """The released code's score in learning rates, float64[K], of clipped gradients.

    `gram` has a slot more than there are domains where the target is a slot of its own. Products
    are of gradients of norm `clip` at most; norms are plain.
    """
    count = len(who.trained)
    alone = len(gram.tokens) > count
    target = np.arange(count + 1) == count if alone else who.target
    norm = np.minimum(gram.norms[:count][who.trained], clip).mean()
    score = alignment(gram.products, target)[:count] / (norm + 1e-6)
    return np.asarray(np.clip(score, _LEAST, _MOST), np.float64)


def _need_all(gram: DomainGram, who: Roles) -> None:
    if not gram.present.all():
        raise MixcError(
            "MX007",
            f"a batch is too small for rows of all {len(who.trained)} domains and the target",
            help="raise solve.proxy.batch_tokens, or set solve.doge.variant to paper",
        )
