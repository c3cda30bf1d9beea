"""The training loop that every method shares; a method shapes only the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from mixc_kernels.domain_reduce import DomainStats, domain_reduce
from numpy.typing import NDArray
from torch import Tensor

from mixc.errors import MixcError
from mixc.proxy import ranks
from mixc.proxy.checkpoint import Checkpoint, State
from mixc.proxy.device import (
    computing_in,
    deterministic,
    pick_device,
    pick_precision,
    shall_compile,
)
from mixc.proxy.groups import parameter_groups
from mixc.proxy.loss import token_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import LEARNING_RATE, Shape, flops_per_token

_WORST = 2.0  # times the loss at first, or log V if that is more: beyond it training has diverged


@dataclass(frozen=True)
class Batch:
    """Rows of one domain each: tokens int64[B, L] (L - 1 are predicted), domain int64[B]."""

    tokens: NDArray[np.int64]
    domain: NDArray[np.int64]

    @property
    def predicted(self) -> int:
        """Tokens that are predicted: all but the first of each row."""
        return self.tokens.size - len(self.tokens)


# The batch of a step, counted from 0: a pure function. It may read records of the steps before.
Batches = Callable[[int], Batch]
# (step, losses float32[B, T] in nats, batch) -> the scalar to minimise.
Objective = Callable[[int, Tensor, Batch], Tensor]
# (state before the step, batch) -> losses float32[B, T], detached; leaves a gradient in every
# parameter of the state's model. Of several ranks, each does it all.
Backward = Callable[[State, Batch], Tensor]
# Arrays [steps, ...]; step t writes row t and may read the rows before. All that a method
# carries from step to step stands here, since this is what checkpoints keep.
Records = dict[str, NDArray[np.float64]]
# Tokens int64[B, T] to hidden states [B, T, width].
Forward = Callable[[Tensor], Tensor]
# (step, mean loss of the batch in nats)
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class TrainOptions:
    """How to train. `seq_len` is the number of predicted tokens a row.

    `learning_rate` is the peak of a model of width 96 (see `mixc.proxy.groups`), by default 3e-3;
    `warmup` is a share of the steps, `final_lr` a share of the peak; `device` is auto, cpu or cuda,
    `precision` auto, fp32 or bf16, `compile` auto or a bool (see `mixc.proxy.device`).
    """

    shape: Shape
    vocab_size: int
    seq_len: int
    steps: int
    learning_rate: float | None = None
    warmup: float = 0.06
    final_lr: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    device: str = "auto"
    precision: str = "auto"
    compile: bool | str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained model and its cost: mean loss of each step's batch float64[steps], in nats."""

    model: Model
    losses: NDArray[np.float64]
    tokens: int
    flops: float


def train(
    options: TrainOptions,
    batches: Batches,
    objective: Objective,
    *,
    backward: Backward | None = None,
    records: Records | None = None,
    init: Mapping[str, Tensor] | None = None,
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Train a fresh model, or one that starts from the weights `init` (a state dict).

    AdamW (arXiv:1711.05101) under `rate_at`, decay on matrices only, gradients clipped by their
    norm. A `backward` takes the objective's place where a method needs more than the gradient of
    one scalar. Two runs on one machine agree to the bit, also where one was stopped and went on
    from its `checkpoint`; no global generator is used or set.

    Errors: MX050 when the loss or the gradient is no longer finite, or the loss is above twice
    what it was at first and twice log(vocab_size), what a model has that knows nothing; the
    state before that step stays in the checkpoint. MX007 for a device or precision that is not
    here, or for fewer rows in a batch than ranks.
    """
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    with deterministic(device):
        model = _start(options, device, init)
        long = shall_compile(options.compile, device, options.steps)
        forward: Forward = torch.compile(model, dynamic=False) if long else model
        losses = np.zeros(options.steps)
        state = State(model, _optimiser(model, options), {} if records is None else records, losses)
        if checkpoint is not None:
            checkpoint.restore(state)
        while (step := state.step) < options.steps:
            batch = batches(step)
            with _keeping(state, checkpoint):
                state.optimiser.zero_grad(set_to_none=True)
                with computing_in(precision, device):
                    if backward is None:
                        each = _whole_losses(model, batch, forward)
                    else:
                        each = backward(state, batch)
                scalar = objective(step, each, batch) if backward is None else None
                _update(options, state, each.detach(), scalar)
            state.step, state.tokens = step + 1, state.tokens + batch.predicted
            if on_step is not None:
                on_step(step, float(losses[step]))
            if checkpoint is not None and (checkpoint.due() or state.step == options.steps):
                checkpoint.save(state)
    cost = 3 * flops_per_token(options.shape, options.vocab_size, options.seq_len)
    return Trained(model, losses, state.tokens, cost * state.tokens)


@contextmanager
def _keeping(state: State, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Where the step in the block diverges, keep the state before it."""
    try:
        yield
    except MixcError as error:
        if error.code == "MX050" and checkpoint is not None and state.step > 0:
            checkpoint.save(state)
            error.help = f"{error.help}; the state before it is kept in {checkpoint.path}"
        raise


def _update(options: TrainOptions, state: State, losses: Tensor, scalar: Tensor | None) -> None:
    """The step that the gradient of the scalar asks for, or that `backward` left.

    The loss and the gradient's norm come from a GPU together: it is waited for once.
    """
    if scalar is not None:
        scalar.backward()  # type: ignore[no-untyped-call]
        ranks.sum_gradients(state.model)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), options.clip)
    loss, length = torch.stack([losses.double().mean(), norm.double()]).tolist()
    _check_loss(loss, state, options)
    if not math.isfinite(length):
        raise _diverged(f"the gradient's norm is {length}", state.step, options)
    state.losses[state.step] = loss
    for group in state.optimiser.param_groups:
        group["lr"] = rate_at(state.step, options) * group["rate_factor"]
    state.optimiser.step()


def mean_loss(step: int, losses: Tensor, batch: Batch) -> Tensor:  # noqa: ARG001 (an Objective)
    """The plain objective: the mean over all tokens."""
    return losses.mean()


def weighted_loss(losses: Tensor, batch: Batch, weights: NDArray[np.float64]) -> Tensor:
    """Sum over domains of weights[k] times the token mean of the batch's losses in domain k.

    losses [B, T], weights float64[K]. A domain absent from the batch adds nothing, and the
    others are not scaled up for it.
    """
    rows = np.bincount(batch.domain, minlength=len(weights))
    share = weights[batch.domain] / (rows[batch.domain] * losses.shape[1])
    return (losses * torch.from_numpy(share).to(losses)[:, None]).sum()


def domain_stats(
    losses: Tensor, batch: Batch, domains: int, reference: NDArray[np.float32] | None = None
) -> DomainStats:
    """What the batch's losses float32[B, T] add up to in each domain; no gradient flows.

    Of losses above `reference` [B, T], another model's, too. In whole numbers: sums are the same
    to the bit whatever the rows' order, and a GPU hands over these alone.
    """
    flat, domain = losses.flatten(), torch.from_numpy(batch.domain).to(losses.device)
    known = None if reference is None else torch.from_numpy(reference).to(losses.device).flatten()
    domain = domain.repeat_interleave(losses.shape[1])
    return DomainStats(*domain_reduce(flat, domain, domains, ref_loss=known).table().cpu())


def batch_losses(model: Model, batch: Batch, forward: Forward | None = None) -> Tensor:
    """Losses float32[B, L - 1] of each token of the batch but the first of each row, in nats.

    `forward` is the model's own, or a compiled one.
    """
    tokens = torch.from_numpy(batch.tokens).to(model.head.device)
    hidden = (model if forward is None else forward)(tokens[:, :-1])
    return token_losses(hidden, model.head, tokens[:, 1:], model.vocab)


def _whole_losses(model: Model, batch: Batch, forward: Forward) -> Tensor:
    """`batch_losses`, of which each rank computes its share."""
    rows = len(batch.tokens)
    if rows < ranks.count():
        raise MixcError(
            "MX007",
            f"a batch has {rows} rows, fewer than the {ranks.count()} processes that train on it",
            help="raise solve.proxy.batch_tokens, or start fewer processes",
        )
    mine = ranks.share(rows)
    part = Batch(batch.tokens[mine], batch.domain[mine])
    return ranks.gather_rows(batch_losses(model, part, forward), rows)


def peak_rate(options: TrainOptions) -> float:
    """The highest learning rate: as given, or the default."""
    return LEARNING_RATE if options.learning_rate is None else options.learning_rate


def rate_at(step: int, options: TrainOptions) -> float:
    """The learning rate of a step: a linear rise, then half a cosine down to the final rate."""
    peak = peak_rate(options)
    rise = max(1, round(options.warmup * options.steps))
    if step < rise:
        return peak * ((step + 1) / rise)
    done = (step + 1 - rise) / (options.steps - rise)
    return peak * (options.final_lr + (1 - options.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def _start(options: TrainOptions, device: torch.device, init: Mapping[str, Tensor] | None) -> Model:
    model = Model(options.shape, options.vocab_size, options.seed)
    if init is not None:
        model.load_state_dict(init)
    return model.to(device)


def _optimiser(model: Model, options: TrainOptions) -> torch.optim.Optimizer:
    groups = parameter_groups(model, options.weight_decay)
    fused = model.head.device.type == "cuda"
    return torch.optim.AdamW(groups, betas=options.betas, fused=fused)


def _check_loss(loss: float, state: State, options: TrainOptions) -> None:
    first = state.losses[0] if state.step else loss
    if not loss <= _WORST * max(first, math.log(options.vocab_size)):
        raise _diverged(f"the loss is {loss:.4g}", state.step, options)


def _diverged(what: str, step: int, options: TrainOptions) -> MixcError:
    return MixcError(
        "MX050",
        f"training diverged at step {step} of {options.steps}: {what}",
        help=f"lower solve.proxy.learning_rate (it was {rate_at(step, options):.3g} here)",
    )
