"""The training loop that every method shares; a method shapes only the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixc.errors import MixcError
from mixc.proxy.checkpoint import Checkpoint, State
from mixc.proxy.device import deterministic, pick_device
from mixc.proxy.loss import token_losses
from mixc.proxy.model import Model
from mixc.proxy.presets import Shape, default_learning_rate, flops_per_token


@dataclass(frozen=True)
class Batch:
    """Rows of one domain each: tokens int64[B, L] (L - 1 are predicted), domain int64[B]."""

    tokens: NDArray[np.int64]
    domain: NDArray[np.int64]


# The batch of a step, counted from 0: a pure function. It may read records of the steps before.
Batches = Callable[[int], Batch]
# (step, losses float32[B, T] in nats, batch) -> the scalar to minimise.
Objective = Callable[[int, Tensor, Batch], Tensor]
# (model, step, batch) -> losses float32[B, T], detached; leaves a gradient in every parameter.
Backward = Callable[[Model, int, Batch], Tensor]
# Arrays [steps, ...]; step t writes row t and may read the rows before. All that a method
# carries from step to step stands here, since this is what checkpoints keep.
Records = dict[str, NDArray[np.float64]]
# (step, mean loss of the batch in nats)
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class TrainOptions:
    """How to train. `seq_len` is the number of predicted tokens a row.

    `learning_rate` None takes the shape's default; `warmup` is a share of the steps, `final_lr`
    a share of the peak rate; `device` is auto, cpu or cuda.
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

    Errors: MX050 when the loss or the gradient is no longer finite; MX007 for a missing device.
    """
    device = pick_device(options.device)
    with deterministic(device):
        model = _start(options, device, init)
        losses = np.zeros(options.steps)
        state = State(model, _optimiser(model, options), {} if records is None else records, losses)
        if checkpoint is not None:
            checkpoint.restore(state)
        while state.step < options.steps:
            batch = batches(state.step)
            _step(options, state, batch, objective, backward)
            if on_step is not None:
                on_step(state.step - 1, float(losses[state.step - 1]))
            if checkpoint is not None and (checkpoint.due() or state.step == options.steps):
                checkpoint.save(state)
    forward = flops_per_token(options.shape, options.vocab_size, options.seq_len)
    return Trained(model, losses, state.tokens, 3 * forward * state.tokens)


def _step(
    options: TrainOptions,
    state: State,
    batch: Batch,
    objective: Objective,
    backward: Backward | None,
) -> None:
    """One update of the model on a batch."""
    step, optimiser = state.step, state.optimiser
    optimiser.zero_grad(set_to_none=True)
    losses = (
        batch_losses(state.model, batch) if backward is None else backward(state.model, step, batch)
    )
    loss = losses.detach().double().mean().item()
    _check_finite("loss", loss, step, options)
    if backward is None:
        objective(step, losses, batch).backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), options.clip)
    _check_finite("gradient's norm", norm.item(), step, options)
    _set_rate(optimiser, rate_at(step, options))
    optimiser.step()
    state.losses[step] = loss
    state.step, state.tokens = step + 1, state.tokens + losses.numel()


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


def batch_losses(model: Model, batch: Batch) -> Tensor:
    """Losses float32[B, L - 1] of each token of the batch but the first of each row, in nats."""
    tokens = torch.from_numpy(batch.tokens).to(model.head.device)
    hidden: Tensor = model(tokens[:, :-1])
    return token_losses(hidden, model.head, tokens[:, 1:])


def rate_at(step: int, options: TrainOptions) -> float:
    """The learning rate of a step: a linear rise, then half a cosine down to the final rate."""
    given = options.learning_rate
    peak = default_learning_rate(options.shape) if given is None else given
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
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=options.betas)


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _check_finite(what: str, value: float, step: int, options: TrainOptions) -> None:
    if not math.isfinite(value):
        raise MixcError(
            "MX050",
            f"training diverged at step {step} of {options.steps}: the {what} is {value}",
            help=f"lower solve.proxy.learning_rate (it was {rate_at(step, options):.3g} here)",
        )
