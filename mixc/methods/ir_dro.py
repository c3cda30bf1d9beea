"""IR-DRO: documents weighted by their loss (instance-reweighted DRO, arXiv:2402.14270).

A reference model is trained on a simple mix, and every training document is scored by it, once.
Documents then get multiples m of their natural share u, the token share, by one of three rules.
`temperature` is lambda in:

- softmax (IR-DRO): w = u m maximises sum w loss - lambda KL(w, u): m ~ exp(loss / lambda).
- lin_upper (arXiv:2502.06733): m ~ exp(h / lambda), where h rises with the loss from 0 to 1 and
  stays there from the middle of the range of losses on: what is easy is weighted down, what is
  hard is not weighted up without bound.
- mid_rank (arXiv:2402.14270): only documents in a band of ranks of loss, [`band`, 2 `band`) of all
  from the top; what is hardest of all, often noise, is left out.

No multiple exceeds `largest`; what is cut is spread over the rest, as the same maximum under that
bound has it. A domain's weight is the sum of its documents'.

The released code takes the softmax over the losses of one small batch at a time, so that its
weights follow the batch size. Here it is over all that is scored. Its loss is the mean over a
sequence's tokens, as here; documents of more tokens count for more, so that at a large lambda all
is natural. Losses are high where nothing can be learnt, too.

Cost: one training run, 3 forward passes a token, and one for each token scored.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mixc.recipe import Strict
from mixc.rows.weights import MOST
from mixc.solve import documents
from mixc.solve.documents import tilt
from mixc.solve.problem import Problem, Solution

if TYPE_CHECKING:
    from mixc.proxy.model import Model
    from mixc.solve.lab import Lab


class Options(Strict):
    """Options of `solve.ir_dro`."""

    rule: Literal["softmax", "lin_upper", "mid_rank"] = Field(
        default="softmax", description="how losses become weights"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="lambda, in nats; larger is nearer to natural"
    )
    band: float = Field(
        default=0.125, gt=0, le=0.5, description="of mid_rank: the band's share of all tokens"
    )
    largest: float = Field(
        default=16.0, ge=1, le=MOST, description="a document's largest multiple of its share"
    )
    reference: Literal["natural", "uniform"] = Field(
        default="natural", description="the mix that the model is trained on"
    )
    most_documents: int | None = Field(
        default=None, ge=1, description="documents scored of each domain at most; default: all"
    )


def solve(problem: Problem, options: Options) -> Solution:
    """Train, score, tilt. The intervals are the documents' own spread. Errors: MX050."""
    lab, count = problem.lab, len(problem.domains)
    natural = problem.tokens / problem.tokens.sum()
    mix = natural if options.reference == "natural" else np.full(count, 1 / count)
    reference = lab.train("reference", lab.batches(mix))
    model = reference.model
    chosen = documents.choose(lab, options.most_documents)
    losses = documents.score(lab, chosen, partial(losses_of, lab, model))
    multiple = multiples(chosen.share, losses, options)
    weights, low, high = documents.domain_weights(chosen, multiple, count)
    return Solution(
        weights=weights,
        low=low,
        high=high,
        documents=documents.shares_of(chosen, multiple),
        trajectory=documents.by_domain(chosen, losses, multiple, count),
        bits_per_byte={"reference": lab.score_run(mix, reference).bits_per_byte},
        tokens=reference.tokens,
        flops=reference.flops + lab.forward_flops(int(chosen.lengths.sum())),
        environment=lab.environment(),
    )


def beside_flops(problem: Problem, options: Options) -> float:
    """Operations of the scoring beside the training, about."""
    lab = problem.lab
    return lab.forward_flops(documents.about_tokens(lab, options.most_documents))


def losses_of(lab: Lab, model: Model, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """The loss on each of the store's tokens but the first of each row, float32[B, L - 1]."""
    from mixc.proxy.evaluate import row_losses

    known = lab.vocabulary
    losses = row_losses(model, known.ids[tokens])
    return np.asarray(losses + known.extra[tokens[:, 1:]], np.float32)


def multiples(
    share: NDArray[np.float64], loss: NDArray[np.float64], options: Options
) -> NDArray[np.float64]:
    """Each document's multiple of its share, float64[n], of mean losses [n] in nats."""
    if options.rule == "softmax":
        return tilt(share, loss / options.temperature, options.largest)
    if options.rule == "lin_upper":
        return tilt(share, lin_upper(loss) / options.temperature, options.largest)
    return mid_rank(share, loss, options.band)


def lin_upper(loss: NDArray[np.float64]) -> NDArray[np.float64]:
    """LinUpper's h of losses [n]: 0 at the least, 1 from the middle of their range on."""
    low, high = loss.min(), loss.max()
    return np.asarray(np.minimum(2 * (loss - low) / max(high - low, 1e-12), 1.0), np.float64)


def mid_rank(
    share: NDArray[np.float64], loss: NDArray[np.float64], band: float
) -> NDArray[np.float64]:
    """Multiples float64[n] that keep the documents from `band` to 2 `band` of all, hardest first.

    A document stands where the middle of its share does.
    """
    order = np.argsort(-loss, kind="stable")
    middle = np.cumsum(share[order]) - share[order] / 2
    kept = np.zeros(len(share))
    kept[order[(middle >= band) & (middle < 2 * band)]] = 1.0
    if not kept.any():  # few and long documents: the one that stands nearest
        kept[order[np.abs(middle - 1.5 * band).argmin()]] = 1.0
    return np.asarray(kept / (share * kept).sum(), np.float64)
