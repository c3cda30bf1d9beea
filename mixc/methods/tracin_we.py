"""TracIn-WE: weights by influence on a target, through the word embeddings (arXiv:2202.11844).

One model is trained on an even mix. At some of its steps ("checkpoints") the influence of each
domain on the target is found: what a small step on the domain takes off the target's loss, to
first order, <grad l_domain, grad l_target> (TracIn, arXiv:2002.08484). TracIn-WE keeps only the
gradient of the word embeddings, by the input's lookup, in which only words count that both sides
hold: later layers' gradients mostly cancel. That is disputed (arXiv:2511.04715 finds middle
attention best, and ranks better than means), so `layers` and `aggregation` are open.

The target is all domains, or those that `target` names, which are then not to be mixed in. A
domain's product with itself is that of two halves of its rows, so that no row meets itself. With
`normalise`, products become cosines, which do not favour gradients that are long.

- `weights: domains`: softmax(influence / temperature), of the mean over checkpoints, layers and
  targets.
- `weights: documents`: every training document's influence, the mean over its tokens of
  <grad l_token, grad l_target>, by one pass forward with derivatives (`mixc_kernels.grad_dot`). In
  standard deviations over all documents, it tilts how often they appear, as in `ir_dro`; domains
  get what their documents sum to.

Variant `paper` weights checkpoints by their learning rates, which each step on a domain has;
`official` takes all alike, as the released notebook does. The notebook also calls the most negative
products proponents; here a positive influence is one that helps, in both variants. How influence
becomes weights is not in the paper.

Cost: one training run, 3 forward passes a token, and at each checkpoint 3 for each token measured
(of documents, 3 for each token of all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from mixc_kernels.domain_gram import DomainGram
from numpy.typing import NDArray
from pydantic import Field

from mixc.recipe import Strict
from mixc.rng import Stream
from mixc.rows.weights import MOST
from mixc.solve import documents
from mixc.solve.documents import Chosen
from mixc.solve.mirror import raised
from mixc.solve.problem import Problem, Solution, Weights
from mixc.solve.roles import Roles, roles

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mixc.proxy.checkpoint import State
    from mixc.proxy.model import Model
    from mixc.proxy.train import Backward, Batch, Batches, Records
    from mixc.solve.lab import Lab

Index = NDArray[np.int64]

_DRAWS = 1000
_TAIL = 0.025
_TEMPERATURE = {"domains": 0.2, "documents": 1.0}


class Options(Strict):
    """Options of `solve.tracin_we`."""

    variant: Literal["paper", "official"] = Field(
        default="paper", description="checkpoints weighted by learning rate, or all alike"
    )
    weights: Literal["domains", "documents"] = Field(
        default="domains", description="what is weighed: domains, or each document"
    )
    target: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="domains to get better at; default: all, and all get weights",
    )
    train_target: bool = Field(
        default=False, description="whether domains named by target get weights too"
    )
    layers: tuple[Literal["embedding", "middle", "last", "all"], ...] = Field(
        default=("embedding",),
        strict=False,
        min_length=1,
        description="whose gradients: the embedding's, attention's of the middle or last block, "
        "or all together; several are each a vote",
    )
    checkpoints: int = Field(default=5, ge=1, description="steps at which influence is measured")
    batches: int = Field(default=4, ge=1, description="batches measured at each of them")
    aggregation: Literal["mean", "rank"] = Field(
        default="mean", description="of influences, or of ranks among domains or documents"
    )
    normalise: bool = Field(default=True, description="cosines, of domains' gradients")
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="influence that counts as one; default: 0.2, of documents 1 deviation",
    )
    largest: float = Field(
        default=16.0, ge=1, le=MOST, description="a document's largest multiple of its share"
    )
    most_documents: int | None = Field(
        default=None, ge=1, description="documents measured of each domain at most; default: all"
    )

    def named(self) -> tuple[str, ...]:
        """The domains that it names."""
        return self.target


def solve(problem: Problem, options: Options) -> Solution:
    """Train once, measure on the way, and weigh.

    Intervals: of domains, a bootstrap over the batches that were measured; of documents, their own
    spread. Errors: MX050 when the model diverges; MX008, MX009 for targets.
    """
    from mixc.proxy.train import rate_at

    lab, count = problem.lab, len(problem.domains)
    named, also = options.target, options.train_target
    who = roles(problem.domains, named, train_target=also, key="solve.tracin_we.target")
    train_options = lab.train_options()
    steps = checkpoint_steps(train_options.steps, options.checkpoints)
    rates = np.array([rate_at(step, train_options) for step in steps.tolist()])
    even = np.full(count, 1 / count)
    measured = Measured(lab.batches(even), train_options.steps, who, options)
    seen = 0
    if options.weights == "domains":
        shape = (len(steps), options.batches, len(options.layers), count)
        records = {"influence": np.zeros(shape)}
        backward = measuring(steps, records, measured.domains)
    else:
        chosen = documents.choose(lab, options.most_documents).only(who.trained)
        records = {"influence": np.zeros((len(steps), len(options.layers), len(chosen.ids)))}
        backward = measuring(steps, records, measured.documents(lab, chosen))
        seen = int(chosen.lengths.sum())
    trained = lab.train("tracin_we", lab.batches(even), backward=backward, records=records)
    if options.variant == "official":
        rates = np.ones(len(steps))
    if options.weights == "domains":
        solution = _of_domains(records["influence"], rates, who, options, problem.seed)
    else:
        solution = _of_documents(records["influence"], rates, chosen, options, count)
    return replace(
        solution,
        bits_per_byte={"tracin_we": lab.bits_per_byte(trained.model)},
        tokens=trained.tokens,
        flops=trained.flops + _measuring_flops(problem, options, seen),
        environment=lab.environment(),
    )


def beside_flops(problem: Problem, options: Options) -> float:
    """Operations of the measurements beside the training, about."""
    some = options.weights == "documents"
    chosen = documents.about_tokens(problem.lab, options.most_documents) if some else 0
    return _measuring_flops(problem, options, chosen)


def _measuring_flops(problem: Problem, options: Options, chosen: int) -> float:
    """Operations of all measurements: of batches, and of documents of so many tokens.

    Each is a forward and a backward pass.
    """
    lab = problem.lab
    seen = options.batches * lab.batch_rows * (lab.options.seq_len - 1) + chosen
    times = min(options.checkpoints, lab.options.steps) * len(options.layers)
    return 3 * times * lab.forward_flops(seen)


def checkpoint_steps(steps: int, checkpoints: int) -> Index:
    """Evenly spaced steps before which to measure, int64[C]: the last is the run's last."""
    parts = np.linspace(0, steps, min(checkpoints, steps) + 1)[1:]
    return np.round(parts).astype(np.int64) - 1


def measuring(
    steps: Index, records: Records, measure: Callable[[Model, int], NDArray[np.float64]]
) -> Backward:
    """The plain mean loss; before the steps given, `measure(model, step)` is recorded."""

    def backward(state: State, batch: Batch) -> Tensor:
        from mixc.proxy.train import batch_losses

        for place in np.flatnonzero(steps == state.step):
            records["influence"][place] = measure(state.model, state.step)
            state.optimiser.zero_grad(set_to_none=True)
        losses = batch_losses(state.model, batch)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    return backward


@dataclass(frozen=True)
class Measured:
    """What is measured at a step: the batches from it on, which the run goes on with."""

    batches: Batches
    steps: int
    who: Roles
    options: Options

    def rows(self, step: int) -> list[Batch]:
        """The batches of a step, around the run's end to its beginning."""
        return [self.batches((step + i) % self.steps) for i in range(self.options.batches)]

    def domains(self, model: Model, step: int) -> NDArray[np.float64]:
        """Each domain's influence on the target, by batch and layer, float64[batches, L, K]."""
        who, options = self.who, self.options
        found = [
            [
                influence(gram_of(model, layer, batch, len(who.target)), who.target, options)
                for layer in options.layers
            ]
            for batch in self.rows(step)
        ]
        return np.array(found)

    def documents(self, lab: Lab, chosen: Chosen) -> Callable[[Model, int], NDArray[np.float64]]:
        """What measures each document's influence on the target, by layer, float64[L, n]."""

        def measure(model: Model, step: int) -> NDArray[np.float64]:
            found = []
            for layer in self.options.layers:
                aim = target_gradient(model, layer, self.rows(step), self.who.target)
                each = partial(token_influence, lab, model, aim)
                found.append(documents.score(lab, chosen, each))
            return np.array(found)

        return measure


def layer_names(model: Model, layer: str) -> list[str]:
    """The names of the parameters that a layer of the options stands for."""
    names = [name for name, _ in model.named_parameters()]
    if layer == "all":
        return names
    if layer == "embedding":
        return ["embedding"]
    block = len(model.blocks) // 2 if layer == "middle" else len(model.blocks) - 1
    attention = (f"blocks.{block}.qkv", f"blocks.{block}.attention_out")
    return [name for name in names if name in attention]


def gram_of(model: Model, layer: str, batch: Batch, domains: int) -> DomainGram:
    """Products of the domains' gradients of a layer on a batch, unbiased; changes p.grad."""
    import torch
    from mixc_kernels.domain_grads import DomainGrads
    from mixc_kernels.word_embedding_gram import word_embedding_gram

    from mixc.proxy.train import batch_losses

    domain = torch.from_numpy(batch.domain)
    if layer == "embedding":
        losses = partial(batch_losses, model, batch)
        return word_embedding_gram(model.embedding, losses, domain, domains, halves=True)
    with _only(model, layer_names(model, layer)):
        with DomainGrads(model, domain, domains, halves=True) as grads:
            each = batch_losses(model, batch)
        return grads.backward(each, np.zeros(domains))


@contextmanager
def _only(model: Model, names: list[str]) -> Iterator[None]:
    """While the block runs, only these parameters have gradients."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in names)
    try:
        yield
    finally:
        model.requires_grad_(True)


def influence(gram: DomainGram, target: NDArray[np.bool_], options: Options) -> NDArray[np.float64]:
    """Each domain's influence on the targets, float64[K]: the mean of products, or of cosines.

    NaN for a domain without rows. A target that is absent, or a domain's own product where it has
    but one row, is left out of the mean.
    """
    products = gram.products
    if options.normalise:
        products = products / np.maximum(np.outer(gram.norms, gram.norms), 1e-300)
    known = np.outer(gram.present, gram.present & target) & np.isfinite(products)
    sums, counts = np.where(known, products, 0).sum(axis=1), known.sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def target_gradient(
    model: Model, layer: str, batches: list[Batch], target: NDArray[np.bool_]
) -> dict[str, Tensor]:
    """The gradient of the mean loss of all rows of targets, by the names of a layer's weights."""
    import torch

    from mixc.proxy.train import Batch, batch_losses

    names = layer_names(model, layer)
    weights = [dict(model.named_parameters())[name] for name in names]
    rows = [Batch(b.tokens[target[b.domain]], b.domain[target[b.domain]]) for b in batches]
    total = sum(len(some.tokens) for some in rows)
    sums = [torch.zeros_like(weight) for weight in weights]
    for some in rows:
        if len(some.tokens):
            loss = batch_losses(model, some).mean() * (len(some.tokens) / total)
            for kept, grad in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                kept += grad
    return dict(zip(names, sums, strict=True))


def token_influence(
    lab: Lab, model: Model, aim: dict[str, Tensor], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """<grad of a token's loss, aim> of each of the store's tokens but rows' first, [B, L - 1]."""
    from mixc_kernels.grad_dot import grad_dot

    from mixc.proxy.model import Model
    from mixc.proxy.train import Batch, batch_losses

    batch = Batch(lab.vocabulary.ids[tokens], np.zeros(len(tokens), np.int64))

    def losses(moved: nn.Module) -> Tensor:
        assert isinstance(moved, Model)
        return batch_losses(moved, batch)

    found = grad_dot(model, losses, aim)
    return np.asarray(found.cpu().numpy())


def percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value among those of the last axis, in (0, 1); equal ones have equal ranks.

    NaN stays NaN.
    """
    flat = values.reshape(-1, values.shape[-1])
    found = np.full(flat.shape, np.nan)
    for row, out in zip(flat, found, strict=True):
        known = np.isfinite(row)
        ordered = np.sort(row[known])
        below = np.searchsorted(ordered, row[known]) + np.searchsorted(ordered, row[known], "right")
        out[known] = below / (2 * max(len(ordered), 1))
    return found.reshape(values.shape)


def mean_vote(votes: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of votes [N, K] weighted by rates [N], float64[K], without NaN; 0 of NaN alone."""
    known = np.isfinite(votes)
    sums = (np.where(known, votes, 0) * rates[:, None]).sum(axis=0)
    return np.asarray(sums / np.maximum((known * rates[:, None]).sum(axis=0), 1e-300), np.float64)


def soft(score: Weights, trained: NDArray[np.bool_], temperature: float) -> Weights:
    """softmax(score / temperature) over the domains that are trained on, float64[K]."""
    return raised(trained / trained.sum(), score / temperature, trained)


def _of_domains(
    found: NDArray[np.float64], rates: NDArray[np.float64], who: Roles, options: Options, seed: int
) -> Solution:
    """Weights of domains, of influences [C, batches, L, K]; resampled by batch."""
    votes = percentiles(found) if options.aggregation == "rank" else found
    _, batches, layers, count = votes.shape
    votes, every = votes.reshape(-1, layers, count), np.repeat(rates, batches)
    votes = np.stack([mean_vote(one, np.ones(layers)) for one in votes])
    temperature = options.temperature or _TEMPERATURE["domains"]
    weights = soft(mean_vote(votes, every), who.trained, temperature)
    places = Stream(seed, "bootstrap").uniforms(_DRAWS * len(votes)).reshape(_DRAWS, -1)
    drawn = (places * len(votes)).astype(np.int64)
    draws = [soft(mean_vote(votes[i], every[i]), who.trained, temperature) for i in drawn]
    low, high = np.quantile(draws, [_TAIL, 1 - _TAIL], axis=0)
    return Solution(
        weights=weights,
        low=np.minimum(low, weights),
        high=np.maximum(high, weights),
        trajectory={"influence": votes},
    )


def _of_documents(
    found: NDArray[np.float64],
    rates: NDArray[np.float64],
    chosen: Chosen,
    options: Options,
    domains: int,
) -> Solution:
    """Weights of documents, of influences [C, L, n], and the domains' that follow."""
    votes = percentiles(found) if options.aggregation == "rank" else found
    layers = votes.shape[1]
    score = mean_vote(votes.reshape(len(votes) * layers, -1), np.repeat(rates, layers))
    centred = score - (chosen.share * score).sum()
    deviation = float(np.sqrt((chosen.share * centred**2).sum()))
    temperature = options.temperature or _TEMPERATURE["documents"]
    gain = centred / (max(deviation, 1e-300) * temperature)
    multiple = documents.tilt(chosen.share, gain, options.largest)
    weights, low, high = documents.domain_weights(chosen, multiple, domains)
    return Solution(
        weights=weights,
        low=low,
        high=high,
        trajectory=documents.by_domain(chosen, score, multiple, domains),
        documents=documents.shares_of(chosen, multiple),
    )
