"""One training in rounds, whose weights follow from what the model still loses on the holdout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixc.errors import MixcError

if TYPE_CHECKING:  # torch takes a second to import
    from torch import Tensor

    from mixc.proxy.checkpoint import State
    from mixc.proxy.train import Batch, Trained
    from mixc.solve.lab import Lab

Real = NDArray[np.float64]
# (round, losses so far) -> weights float64[K] of the round. The losses are bits per byte of each
# domain's holdout, float64[round + 1, K]; the last row is the model as the round begins.
NextWeights = Callable[[int, Real], Real]


@dataclass(frozen=True)
class Rounds:
    """A training in R rounds: weights and the losses that each began with, float64[R, K]; the
    share of the steps at which each ended; and what it took, with scoring, in FLOPs.
    """

    trained: Trained
    weights: Real
    losses: Real
    ends: tuple[float, ...]
    flops: float


def round_starts(lengths: Sequence[float], steps: int) -> list[int]:
    """The step that each round begins with, for rounds of these relative lengths.

    Raises MX007 if a round would have no step.
    """
    borders = np.concatenate([[0.0], np.cumsum(lengths)]) / sum(lengths)
    starts = [round(border * steps) for border in borders]
    if any(a >= b for a, b in pairwise(starts)):
        raise MixcError(
            "MX007",
            f"{steps} steps are too few for weights that change {len(lengths)} times",
            help="raise solve.proxy.steps, or ask for fewer rounds, or sweeps over probes",
        )
    return starts[:-1]


def train_in_rounds(
    lab: Lab, name: str, lengths: Sequence[float], next_weights: NextWeights
) -> Rounds:
    """Train a model in rounds of these relative lengths, scored at the begin of each.

    Weights take effect a step later, as a batch is made before its model is seen; the first step
    is uniform. A domain that holds nothing out counts as if it lost nothing.
    """
    from mixc.proxy.train import batch_losses

    steps, count = lab.options.steps, len(lab.domains)
    starts = round_starts(lengths, steps)
    records = {"bits_per_byte": np.zeros((steps, count))}

    @cache
    def weights_of(number: int) -> Real:
        if number < 0:
            return np.full(count, 1 / count)
        return next_weights(number, records["bits_per_byte"][starts[: number + 1]])

    def policy(step: int) -> Real:
        return weights_of(int(np.searchsorted(starts, step)) - 1)

    def backward(state: State, batch: Batch) -> Tensor:
        if state.step in starts:
            bits = lab.bits_per_byte(state.model, quiet=True)
            records["bits_per_byte"][state.step] = np.nan_to_num(bits)
        losses = batch_losses(state.model, batch)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    batches = lab.scheduled_batches(policy)
    trained = lab.train(name, batches, backward=backward, records=records)
    weights = np.stack([weights_of(number) for number in range(len(starts))])
    ends = tuple(start / steps for start in [*starts[1:], steps])
    flops = trained.flops + len(starts) * lab.forward_flops(lab.held_tokens)
    return Rounds(trained, weights, records["bits_per_byte"][starts], ends, flops)
